"""Evaluations of classes: kNN, linear probes, retrieval."""

from __future__ import annotations

import dataclasses
import math

from ml_collections import ConfigDict

from sparse_vis.evals.bench import Bench, Reducer
from sparse_vis.evals.classes import knn, retrieval
from sparse_vis.evals.classes.linear import candidates, sweep
from sparse_vis.evals.classes.logistic import Protocol as SweepProtocol
from sparse_vis.evals.classes.multilabel import multilabel_probe
from sparse_vis.evals.columns import CONCATENATED, POOLED
from sparse_vis.evals.dataset import Data, without_unlabelled
from sparse_vis.evals.features import POOLED as NAMES
from sparse_vis.evals.features import Split
from sparse_vis.evals.task import Result, Task

MEANS = tuple(NAMES)


def _labelled_means(data: Data) -> dict[str, tuple[Reducer, ...]]:
    return dict.fromkeys(data.labelled, POOLED)


def pooled_splits(bench: Bench) -> dict[str, tuple[Split, Split]]:
    """Pooled feature → its labelled train and test rows."""
    train, test = (bench.columns(part) for part in bench.data.labelled)
    names = [name for name in NAMES.values() if name in train]
    if not names:
        return {}
    (x, y), (test_x, test_y) = (without_unlabelled(columns, names) for columns in (train, test))
    return {name: (Split(x[name], y), Split(test_x[name], test_y)) for name in names}


def _knn(bench: Bench, config: ConfigDict) -> Result:
    metrics, classes = {}, bench.data.classes
    for name, (train, test) in pooled_splits(bench).items():
        ks = tuple(k for k in knn.KS if k <= len(train.x))
        found = knn.knn_accuracy(train, test, classes=classes, ks=ks) if ks else {}
        metrics[name] = {f"k{k}": accuracy for k, accuracy in found.items()}
    few = {f"k{k}": f"there are only {len(train.x)} training images" for k in knn.KS if k > len(train.x)}
    return Result(metrics, few)


def _retrieval(bench: Bench, config: ConfigDict) -> Result:
    metrics, splits = {}, pooled_splits(bench)
    for name, (_, test) in splits.items():
        found = retrieval.recall_at_k(test, ks=tuple(k for k in retrieval.KS if k < len(test.x)))
        metrics[name] = {f"recall{k}": share for k, share in found.items()}
    count = next((len(test.x) for _, test in splits.values()), 0)
    few = {f"recall{k}": f"there are only {count} test images" for k in retrieval.KS if k >= count}
    if any(math.isnan(share) for row in metrics.values() for share in row.values()):
        return Result({}, few | {"retrieval": "no two test images are of one class"})
    return Result(metrics, few)


def _sweep_reducers(data: Data) -> dict[str, tuple[Reducer, ...]]:
    parts = {*data.labelled, *(("train", "test") if data.sets else ())}
    return dict.fromkeys(parts, (*POOLED, CONCATENATED))


def _linear(bench: Bench, config: ConfigDict) -> Result:
    data, protocol = bench.data, SweepProtocol(seed=bench.seed)
    train, test = (bench.columns(part) for part in data.labelled)
    metrics, details = {"chosen": {}}, {}
    if "label" in train:
        names = list(candidates(train))
        (x, y), (test_x, test_y) = (
            without_unlabelled({**columns, **candidates(columns)}, names) for columns in (train, test)
        )
        found = sweep(x, y, test_x, test_y, classes=data.classes, protocol=protocol)
        metrics = {
            name: {"accuracy": result.accuracy, "top5": result.top5}
            for name, result in {"chosen": found.chosen, **found.alone}.items()
        }
        details = dataclasses.asdict(found.chosen)
    if data.sets:
        parts = [bench.columns(part) for part in ("train", "test")]
        (x, y), (test_x, test_y) = ((candidates(part), part["sets"]) for part in parts)
        sets = multilabel_probe(x, y, test_x, test_y, protocol=protocol)
        metrics["chosen"]["map"] = sets.mean_average_precision
        details["sets"] = dataclasses.asdict(sets)
    return Result(metrics, details=details)


KNN = Task(
    _knn, ("label",), MEANS, _labelled_means,
    lambda config: {"k": knn.KS, "temperature": 0.07, "feature": "L2-normalised"}, least=(min(knn.KS), 1),
)  # fmt: skip
LINEAR = Task(
    _linear,
    ("class",),
    MEANS,
    _sweep_reducers,
    lambda config: dataclasses.asdict(SweepProtocol(seed=config.eval.seed)),
    least=(SweepProtocol().least_rows, 1),
)
RETRIEVAL = Task(
    _retrieval, ("label",), MEANS, _labelled_means,
    lambda config: {"k": retrieval.KS, "gallery": "all other test images"}, least=(1, 2),
)  # fmt: skip
