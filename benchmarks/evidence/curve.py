"""Draw accuracy against images seen, from an evaluation of a run's checkpoints.

    python -m benchmarks.evidence.curve --evaluation=runs/NAME/evaluation.json --batch=64 --output=curve.png

Encoders that are no step folder are horizontal lines. Numbers are those of mean S; where an encoder has no S,
of mean U.
"""

from __future__ import annotations

import json
import pathlib

from benchmarks.evidence.evidence_tables import TRAINED, metrics, number
from benchmarks.evidence.experiments import KNN, LINEAR
from benchmarks.speed.command import script_parser
from sparse_vis.runtime.errors import UserError, command_line


def curves(evaluation: dict, batch: int) -> tuple[dict[int, dict], dict[str, dict]]:
    """(images seen -> column -> number, other encoder -> column -> number) of an evaluation.json's content.

    Raises:
        UserError: fewer than two step folders were measured.
    """
    result, steps, others = {"metrics": metrics(evaluation)}, {}, {}
    for encoder in result["metrics"]:
        numbers = {column.title: number(result, encoder, column.path) for column in (KNN, LINEAR)}
        step = pathlib.PurePath(encoder).name
        if step.isdigit():
            steps[int(step) * batch] = numbers
        elif encoder != TRAINED:
            others[encoder] = numbers
    if len(steps) < 2:
        raise UserError(
            f"the evaluation has {len(steps)} step folders and a curve needs two; name them in "
            "config.eval.beside."
        )
    return dict(sorted(steps.items())), others


def draw(steps: dict[int, dict], others: dict[str, dict], output: pathlib.Path) -> None:
    """One panel per column: the run's curve, the others' lines."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(8, 3), sharey=True, layout="constrained")
    for axis, column in zip(axes, (KNN, LINEAR), strict=True):
        thousands = [images / 1000 for images in steps]
        axis.plot(thousands, [numbers[column.title] for numbers in steps.values()], "o-", label="run")
        for i, (name, numbers) in enumerate(others.items(), 1):
            axis.axhline(numbers[column.title], color=f"C{i}", linestyle="--", label=name)
        axis.set(title=f"{column.title}, mean S", xlabel="images seen, thousands", ylim=(0, 1))
    axes[0].set_ylabel("accuracy on the test split")
    axes[0].legend()
    figure.savefig(output, dpi=100)
    plt.close(figure)


def main() -> None:
    parser = script_parser(__spec__, __doc__)
    add, file = parser.add_argument, {"type": pathlib.Path, "required": True, "metavar": "FILE"}
    add(
        "--evaluation",
        **file,
        help="evaluation.json of main.py --mode=evaluate with tasks knn and linear, "
        "the run's step folders in config.eval.beside",
    )
    add("--batch", type=int, required=True, metavar="N", help="images of a step")
    add("--output", **file, help="PNG")
    arguments = parser.parse_args()
    try:
        evaluation = json.loads(arguments.evaluation.read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"{arguments.evaluation} is no evaluation.json ({error}); give the one in the workdir of "
            "main.py --mode=evaluate."
        ) from None
    steps, others = curves(evaluation, arguments.batch)
    draw(steps, others, arguments.output)
    for images, numbers in steps.items():
        print(images, *(f"{title} {value:.3f}" for title, value in numbers.items()))
    print(f"-> {arguments.output}")


if __name__ == "__main__":
    command_line(main)
