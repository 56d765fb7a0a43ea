"""What `main.py --mode=evaluate` does: the tasks of config.eval on the run's model and those beside it."""

from __future__ import annotations

import difflib
import pathlib
import time
from dataclasses import dataclass

from ml_collections import ConfigDict

from sparse_vis.data.decode import decode
from sparse_vis.errors import UserError
from sparse_vis.evals import scenes
from sparse_vis.evals.bench import Bench, Reducer
from sparse_vis.evals.dataset import Data, Part, open_data
from sparse_vis.evals.encoders import OWN, beside_encoder, check_beside, own_encoder
from sparse_vis.evals.features import Encoder
from sparse_vis.evals.label_maps import check_maps
from sparse_vis.evals.networks import Networks
from sparse_vis.evals.results import Results
from sparse_vis.evals.task import Result
from sparse_vis.evals.tasks import TASKS
from sparse_vis.evals.verdict import verdict
from sparse_vis.interop.maskgit import load_tokenizer
from sparse_vis.runtime.files import write_whole

LACKING = {
    "label": "one class per image: a folder with a subfolder per class has them, scenes have them",
    "class": "class labels: a folder with a subfolder per class has them, scenes have them",
    "mask": "true instance masks: only scenes have them",
    "map": "label maps: scenes have them, --config.eval.masks=FOLDER gives them to others",
}
# Fewest images of a part: of train a tenth is held out, and a query needs another image to find.
LEAST = {
    **dict.fromkeys(("linear", "scenes", "factorization", "rate"), ("train", 6)),
    "retrieval": ("test", 2),
}


@dataclass(frozen=True)
class Plan:
    """What will be evaluated on what, found to be possible.

    Attributes:
        tasks: their names. data, networks: see there.
    """

    tasks: tuple[str, ...]
    data: Data
    networks: Networks


def make_plan(config: ConfigDict) -> Plan:
    """Open what the evaluations of a configuration read, before any long work starts.

    Raises:
        UserError: an unknown task, or one that needs what the source does not have; files or images that are
            missing or damaged.
    """
    for name in config.eval.tasks:
        if name not in TASKS:
            alike = difflib.get_close_matches(name, TASKS, n=2, cutoff=0.5) or TASKS
            raise UserError(f"config.eval.tasks names {name!r}, which is no task; use {' or '.join(alike)}.")
    data = open_data(config)
    for part in data.parts.values():
        _check_part(part, config.eval.tasks)
    for name in config.eval.tasks:
        kind, least = LEAST.get(name, ("train", 1))
        if (count := len(data.parts[kind])) < least:
            raise UserError(
                f"the evaluation {name!r} needs {least} images of {kind} at least, and there are {count}; "
                f"raise config.eval.{kind}_records, or give more images."
            )
    for name in config.eval.beside:
        check_beside(name, config)
    e, tokenizer = config.eval, config.model.tokenizer
    if "reconstruction_probe" in e.tasks and e.reconstruction_probe.target == "vq":
        load_tokenizer(tokenizer.path, tokenizer.dtype)  # only for what may be wrong with it
    networks = Networks(e.inception, e.lpips.alexnet, e.lpips.heads, e.batch)
    if any(TASKS[name].networks for name in e.tasks):
        for metric, why in networks.absent.items():
            print(f"note: {metric} will be absent: {why}", flush=True)
    return Plan(tuple(config.eval.tasks), data, networks)


def _check_part(part: Part, names: tuple[str, ...]) -> None:
    """Refuse tasks that need what the records of a part do not have."""
    record = part.source[int(part.indices[0])]
    decode(record)
    has = {*record, *(("map",) if part.map_classes else ())}
    has |= {"class"} if has & {"label", "labels"} else set()
    for name in names:
        for need in set(TASKS[name].needs) - has:
            raise UserError(
                f"the evaluation {name!r} needs {LACKING[need]}; {part.source!r} has none: "
                f"leave {name!r} out of config.eval.tasks."
            )
        if "map" in TASKS[name].needs:
            check_maps(part)


def evaluate(config: ConfigDict, workdir: pathlib.Path, plan: Plan) -> list[str]:
    """Run the tasks that are not finished, write evaluation.json after each, then print the tables.

    Args:
        config: complete configuration. workdir: of the run; results go there. plan: of `make_plan`.

    Returns:
        The figures of config.eval.expected that were not met.

    Raises:
        UserError: anything the user can mend.
    """
    own, weights = own_encoder(config, workdir)
    train = plan.data.parts["train"]
    others = [beside_encoder(name, config, weights, train) for name in config.eval.beside]
    workdir.mkdir(parents=True, exist_ok=True)
    results = Results(workdir)
    for encoder in (own, *others):
        _evaluate_one(encoder, plan, config, results)
    text = results.tables([e.name for e in (own, *others)], plan.tasks)
    compared, missed = verdict(results, OWN, config.eval.expected)
    text += compared if config.eval.expected else ""
    title = f"# Evaluation of {own.about['from']}\n"
    write_whole(workdir / "evaluation.md", f"{title}{text}\n")
    print(
        f"{text}\n\n{results.path} has these numbers and all settings, evaluation.md the tables.", flush=True
    )
    return missed


def _evaluate_one(encoder: Encoder, plan: Plan, config: ConfigDict, results: Results) -> None:
    settings = {name: _settings(name, encoder, plan, config) for name in plan.tasks}
    left = [name for name in plan.tasks if not results.finished(encoder.name, name, settings[name])]
    for name in plan.tasks:
        if name not in left:
            print(f"{encoder.name}: {name} is finished", flush=True)
    reducers: dict[str, set[Reducer]] = {part: set() for part in plan.data.parts}
    for name in left:
        for part, kept in TASKS[name].reducers(plan.data).items():
            reducers[part].update(kept)
    bench = Bench(encoder, plan.data, plan.networks, config.eval.batch, config.eval.seed, reducers)
    for name in left:
        began = time.perf_counter()
        print(f"evaluating {encoder.name}: {name}", flush=True)
        result = _measure(name, bench, config)
        ran = {"from": encoder.about.get("from"), "seconds": round(time.perf_counter() - began, 1)}
        results.add(encoder.name, name, settings[name], result, ran)
    if "scenes" in left and encoder.name == OWN and {"reconstruction", "spatial"} <= set(encoder.gives):
        scenes.draw(bench, results.path.with_name("localization.png"))


def _measure(name: str, bench: Bench, config: ConfigDict) -> Result:
    task, encoder = TASKS[name], bench.encoder
    if not set(task.reads) & set(encoder.gives):
        why = [encoder.absent[key] for key in task.reads if key in encoder.absent]
        return Result({}, {name: why[0] if why else f"it gives no {' or '.join(task.reads)}"})
    return task.measure(bench, config)


def _settings(name: str, encoder: Encoder, plan: Plan, config: ConfigDict) -> dict:
    task = TASKS[name]
    return {
        "encoder": {key: value for key, value in encoder.about.items() if key != "from"},
        "data": plan.data.about,
        "protocol": task.protocol(config),
        "networks": {**plan.networks.about, "absent": plan.networks.absent} if task.networks else {},
        "batch": config.eval.batch,
        "seed": config.eval.seed,
        "dtype": config.eval.dtype,
    }
