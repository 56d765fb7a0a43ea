"""Plot accuracy against PSNR for every row of a group of experiments, from its result files.

    python -m benchmarks.evidence.plot --output=docs/images/fashion.png

PSNR is that of a new decoder trained on frozen Z = L S, or U without S (the evaluation reconstruction_probe).
Accuracies are of mean S; of an encoder without S, the best of its features on the test images, which favours
it. Points are means over seeds, bars standard deviations. Encoders without a PSNR, such as raw pixels, are
horizontal lines.
"""

import statistics

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.evidence.evidence import RESULTS, TRAINED, number, read_results
from benchmarks.evidence.experiments import GROUPS, NEW_DECODER, Group
from benchmarks.speed.command import check_file, script_parser
from sparse_vis.runtime import paths
from sparse_vis.runtime.errors import UserError, command_line

# Panel -> task, metric, and the features of which the best is shown if there is no mean S.
PANELS = {
    "kNN (k = 20)": ("knn", "k20", ("cls", "mean_U")),
    "linear": ("linear", "accuracy", ("cls", "cls_mean_U", "mean_U")),
}
OWN = "mean_S"


def accuracy(result: dict, encoder: str, panel: str) -> float | None:
    """The accuracy that a panel shows of an encoder; None if nothing was measured."""
    task, metric, others = PANELS[panel]
    own = number(result, encoder, (task, OWN, metric))
    found = [number(result, encoder, (task, name, metric)) for name in others]
    return own if own is not None else max((x for x in found if x is not None), default=None)


def curves(group: Group, results: list[dict], panel: str) -> dict[str, tuple[list[float], list[float]]]:
    """Name of each encoder with an accuracy → its accuracies and PSNRs, one per seed."""
    found = {}
    for name, row in group.rows.items():
        runs = [result for result in results if result["row"] == name]
        for encoder in (TRAINED, *row.shown):
            values = [x for run in runs if (x := accuracy(run, encoder, panel)) is not None]
            psnrs = [x for run in runs if (x := number(run, encoder, NEW_DECODER.path)) is not None]
            if values:
                found[name if encoder == TRAINED else encoder] = values, psnrs
    return found


def spread(values: list[float]) -> float:
    """Standard deviation over seeds; 0 for a single one."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def draw(axis: Axes, found: dict[str, tuple[list[float], list[float]]]) -> None:
    """Draw one panel."""
    for place, (name, (values, psnrs)) in enumerate(found.items()):
        mean, colour = statistics.mean(values), f"C{place % 10}"
        if psnrs:
            x, marker = statistics.mean(psnrs), "os^DvP*Xph"[place % 10]
            axis.errorbar(
                x, mean, spread(values), spread(psnrs), fmt=marker, color=colour, capsize=2, label=name
            )
        else:
            axis.axhline(mean, color=colour, linestyle="--", linewidth=1, label=name)
    axis.grid(alpha=0.3)
    axis.tick_params(labelsize=8)


def figure(group: Group, results: list[dict]) -> Figure:
    """All panels side by side, with one legend."""
    sheet = Figure(figsize=(9, 3.6), layout="constrained")
    axes = sheet.subplots(1, len(PANELS), squeeze=False)[0]
    for axis, panel in zip(axes, PANELS, strict=True):
        draw(axis, curves(group, results, panel))
        axis.set_title(panel, fontsize=9)
        axis.set_xlabel("PSNR of a new decoder, dB", fontsize=8)
    axes[0].set_ylabel("accuracy on test images", fontsize=8)
    sheet.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    return sheet


def main() -> None:
    parser = script_parser(__spec__, __doc__)
    add = parser.add_argument
    add("--output", required=True, type=paths.path, metavar="FILE", help="PNG or SVG file to write")
    add("--group", choices=GROUPS, default="fashion", help="of experiments.py (%(default)s)")
    add("--results", type=paths.path, metavar="DIR", default=RESULTS, help="where the result files are")
    given = parser.parse_args()
    check_file(str(given.output), "--output")
    if given.output.suffix not in (".png", ".svg"):
        raise UserError(f"--output={given.output} ends in neither .png nor .svg; give such a file.")
    results = read_results(given.results / given.group)
    if not results:
        raise UserError(
            f"{given.results / given.group} has no results; first run the group with "
            f"python -m benchmarks.evidence.evidence --group={given.group}."
        )
    sheet = figure(GROUPS[given.group], results)
    sheet.savefig(given.output, dpi=150)
    print(f"{len(results)} results -> {given.output}")


if __name__ == "__main__":
    command_line(main)
