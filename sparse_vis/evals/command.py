"""`main.py --mode=evaluate`: run the tasks of config.eval on the run's model and on config.eval.beside."""

from __future__ import annotations

import dataclasses
import difflib
import pathlib
import tempfile
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from sparse_vis.evals.dataset import Data, open_data
from sparse_vis.evals.encoders import OWN, beside_encoder, check_beside, own_encoder
from sparse_vis.evals.features import Encoder
from sparse_vis.evals.maps.label_maps import check_every_map, maps_sha256
from sparse_vis.evals.needs import check_needs, without_unusable
from sparse_vis.evals.pixels.networks import Networks
from sparse_vis.evals.results import Results
from sparse_vis.evals.task import Bench, Reducer, Result
from sparse_vis.evals.tasks import TASKS
from sparse_vis.interop.maskgit import load_tokenizer
from sparse_vis.runtime.batches import of_first
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.files import whole, write_whole
from sparse_vis.runtime.paths import AnyPath, in_bucket
from sparse_vis.runtime.progress import say_once

TOP = 5  # top-5 accuracy is trivial with this many classes


class Plan(NamedTuple):
    """What `make_plan` opened and checked."""

    tasks: tuple[str, ...]  # names
    data: Data
    networks: Networks


def make_plan(config: ConfigDict) -> Plan:
    """Open and check all that the evaluations of a configuration read, before any long work starts.

    Raises:
        UserError: a task is unknown, or needs what the source does not have; files or images are missing or
            damaged.
    """
    e, tokenizer = config.eval, config.model.tokenizer
    for name in e.tasks:
        if name not in TASKS:
            alike = difflib.get_close_matches(name, TASKS, n=2, cutoff=0.5) or TASKS
            what = f"config.eval.tasks names {name!r}, which is not a task"
            raise UserError(f"{what}; use {' or '.join(alike)}.")
    data = open_data(config)
    check_needs(data, {name: TASKS[name] for name in e.tasks})
    for name in e.beside:
        check_beside(name, config)
    if "reconstruction_probe" in e.tasks and e.reconstruction_probe.target == "vq":
        load_tokenizer(tokenizer.path, tokenizer.dtype)  # only to check the file
    networks = Networks(e.inception, e.lpips.alexnet, e.lpips.heads, e.batch)
    if any(TASKS[name].networks for name in e.tasks) and jax.process_index() == 0:
        for metric, why in networks.absent.items():
            say_once(f"note: {metric} will not be measured: {why}")
    return Plan(tuple(e.tasks), data, networks)


def check_classifier(plan: Plan, classes: Sequence[str]) -> None:
    """Raise UserError if the plan has the task "classifier", and the data has other classes than the model.

    `classes` are those of the model's own classifier; none if it was not fine-tuned.
    """
    source = plan.data.parts[plan.data.labelled[1]].source
    if "classifier" in plan.tasks and tuple(classes) != source.classes:
        what = f"has other classes than {source!r}" if classes else "exists only after fine-tuning"
        remedy = "leave 'classifier' out of config.eval.tasks, or fine-tune with --mode=finetune"
        raise UserError(f"the evaluation 'classifier' measures a classifier that {what}; {remedy}.")


def evaluate(
    config: ConfigDict, workdir: AnyPath, plan: Plan, own: tuple[Encoder, tuple | None] | None = None
) -> list[str]:
    """Run the unfinished tasks, write evaluation.json after each, then print the tables.

    With several processes, all must call it: they share the images, and process 0 writes.

    Args:
        own: the run's encoder and weights; None: `own_encoder` reads them.

    Returns:
        The figures of config.eval.expected that were missed.
    """
    own, weights = own or own_encoder(config, workdir)
    check_classifier(plan, own.about.get("classes", ()))
    workdir.mkdir(parents=True, exist_ok=True)
    if config.data.on_error == "skip":
        plan = plan._replace(data=without_unusable(plan.data, workdir))
        check_needs(plan.data, {name: TASKS[name] for name in plan.tasks})  # too few may be left
    train, results = plan.data.parts["train"], Results(workdir)
    encoders = [own, *(beside_encoder(name, config, weights, train) for name in config.eval.beside)]
    left = _unfinished(encoders, plan, config, results)
    if any("map" in TASKS[name].needs for settings in left for name in settings):
        # A damaged training map is noticed in the first epoch, but a test map only after the last.
        check_every_map(plan.data.parts["test"])
    for encoder, settings in zip(encoders, left, strict=True):
        _evaluate_one(encoder, settings, plan, config, results)
    networks = plan.networks.absent if any(TASKS[name].networks for name in plan.tasks) else {}
    text = results.tables([e.name for e in encoders], plan.tasks, networks.values())
    compared, missed = results.verdict(OWN, config.eval.expected)
    text += compared if config.eval.expected else ""
    absent = ["", "## Absent", "", *(f"- {metric}: {why}" for metric, why in networks.items())]
    lines = [f"# Evaluation of {own.about['from']}", text, *(absent if networks else []), ""]
    if jax.process_index() == 0:
        write_whole(workdir / "evaluation.md", "\n".join(lines))
    print(text, flush=True)
    return missed


def _unfinished(
    encoders: list[Encoder], plan: Plan, config: ConfigDict, results: Results
) -> list[dict[str, dict]]:
    """For each encoder, unfinished task → settings, which are all that determines its numbers."""
    settings = [{name: _settings(encoder, name, plan, config) for name in plan.tasks} for encoder in encoders]
    finished = [
        [results.finished(encoder.name, name, found[name]) for name in plan.tasks]
        for encoder, found in zip(encoders, settings, strict=True)
    ]
    # All processes must agree, but may see different times of files or different results.
    finished = of_first(np.array(finished))
    return [
        {name: found[name] for name, done in zip(plan.tasks, row, strict=True) if not done}
        for found, row in zip(settings, finished, strict=True)
    ]


def _settings(encoder: Encoder, name: str, plan: Plan, config: ConfigDict) -> dict:
    e, task = config.eval, TASKS[name]
    return {
        "encoder": {key: value for key, value in encoder.about.items() if key != "from"},
        "data": plan.data.about,
        "protocol": task.protocol(config),
        "maps": maps_sha256(plan.data) if "map" in task.needs else None,
        "networks": {**plan.networks.about, "absent": plan.networks.absent} if task.networks else {},
        "batch": e.batch,
        "seed": e.seed,
        "dtype": e.dtype,
    }


def _evaluate_one(
    encoder: Encoder, left: dict[str, dict], plan: Plan, config: ConfigDict, results: Results
) -> None:
    for name in plan.tasks:
        if name not in left:
            print(f"{encoder.name}: {name} was measured before", flush=True)
    reducers: dict[str, set[Reducer]] = {part: set() for part in plan.data.parts}
    for name in left:
        for part, kept in TASKS[name].reducers(plan.data).items():
            reducers[part].update(kept)
    # For columns that are too large for memory; a bucket cannot hold them.
    folder = tempfile.gettempdir() if in_bucket(results.path) else results.path.parent
    e = config.eval
    bench = Bench(encoder, plan.data, plan.networks, e.batch, e.seed, reducers, pathlib.Path(folder))
    for name, settings in left.items():
        began = time.perf_counter()
        print(f"evaluating {encoder.name}: {name}", flush=True)
        result = _measure(name, bench, config)
        ran = {"from": encoder.about.get("from"), "seconds": round(time.perf_counter() - began, 1)}
        results.add(encoder.name, name, settings, result, ran)
        drawable = encoder.name == OWN and {"reconstruction", "spatial"} <= set(encoder.gives)
        if drawable and TASKS[name].picture and jax.process_index() == 0:
            file, draw = TASKS[name].picture
            with whole(results.path.with_name(file)) as partial:
                draw(bench, config, partial)


def _measure(name: str, bench: Bench, config: ConfigDict) -> Result:
    task, encoder = TASKS[name], bench.encoder
    if not set(task.reads) & set(encoder.gives):
        why = [encoder.absent[key] for key in task.reads if key in encoder.absent]
        return Result({}, {name: why[0] if why else f"the encoder has no {' or '.join(task.reads)}"})
    return _without_trivial(task.measure(bench, config), bench.data.classes)


def _without_trivial(result: Result, classes: int) -> Result:
    """The result; without top-5 accuracies if there are at most five classes."""
    if classes > TOP or not any("top5" in row for row in result.metrics.values()):
        return result
    metrics = {of: {k: v for k, v in row.items() if k != "top5"} for of, row in result.metrics.items()}
    why = f"with {classes} classes, the top five are all of them"
    return dataclasses.replace(result, metrics=metrics, absent=result.absent | {"top5": why})
