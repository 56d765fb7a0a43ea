"""Classes of single objects in scenes of several objects, predicted from the tokens that cover them.

The place of object k is c(k, n), the share of its visible pixels that lie in patch n. With L it gives a
weight of each token, a(k, r) = sum_n c(k, n) L(n, r), whose sum over r is one. Four vectors are classified:
the token of largest weight; S weighted by a; U weighted by c, which knows the true mask; and the image's mean
of S, which does not know which object is meant. If records number their objects, another score is how often
an object's nearest neighbour is the same object in another scene.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Integer
from ml_collections import ConfigDict

from sparse_vis.data.records import Records
from sparse_vis.evals.classes.knn import knn_accuracy, recall_at_k
from sparse_vis.evals.classes.linear import SweepProtocol, sweep
from sparse_vis.evals.dataset import no_classes
from sparse_vis.evals.features import AnyArray, Split, square_grid
from sparse_vis.evals.task import Bench, Reducer, Result, Task

NEIGHBOURS, RECALL_KS = 20, (1, 5)


def covered(
    mask: Integer[AnyArray, "N H W"], grid: tuple[int, int], objects: int
) -> Float[np.ndarray, "N objects n"]:
    """c(k, n) of the objects 1 ... `objects` of every mask; zeros for objects that are not visible.

    Patches have H // rows x W // columns pixels; remaining pixels at the bottom and right are in no patch.
    """
    N, H, W = mask.shape
    (rows, columns), (high, wide) = grid, (H // grid[0], W // grid[1])
    patches = np.asarray(mask)[:, : rows * high, : columns * wide]
    patches = patches.reshape(N, rows, high, columns, wide).swapaxes(2, 3).reshape(N, rows * columns, -1)
    counts = np.stack([(patches == k + 1).sum(axis=-1) for k in range(objects)], axis=1)
    return counts.astype(np.float32) / np.maximum(counts.sum(axis=-1, keepdims=True), 1)


def _seen_by(patches: Float[np.ndarray, "N n d"], records: Records) -> Float[np.ndarray, "N objects d"]:
    """For each object, the mean over its pixels of the vectors of their patches."""
    return covered(records.mask, square_grid(patches.shape[1]), records.labels.shape[1]) @ patches


def _of_tokens(features: dict, records: Records, networks) -> dict[str, np.ndarray]:
    S, weight = features["sparse"], _seen_by(features["spatial"], records)
    return {
        "object_token": np.take_along_axis(S, weight.argmax(axis=2)[..., None], axis=1),
        "object_S": weight @ S,
        "object_mean_S": np.repeat(S.mean(axis=1, keepdims=True), weight.shape[1], axis=1),
    }


def _classes(features: dict, records: Records, networks) -> dict[str, np.ndarray]:
    numbers = {} if records.objects is None else {"object_number": records.objects}
    return {"object_label": records.labels, **numbers}


REDUCERS = (
    Reducer(("sparse", "spatial"), _of_tokens),
    Reducer(("dense",), lambda f, records, _: {"object_U": _seen_by(f["dense"], records)}),
    Reducer((), _classes),
)
NAMES = {"object_token": "token", "object_S": "S by L", "object_U": "U by mask", "object_mean_S": "mean S"}


def _rows(columns: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray | None]:
    """Name → vector of every object that has a class; their classes; and their numbers, if known."""
    labels = columns["object_label"]
    known = labels >= 0
    vectors = {to: columns[name][known] for name, to in NAMES.items() if name in columns}
    return vectors, labels[known], columns["object_number"][known] if "object_number" in columns else None


def _measure(bench: Bench, config: ConfigDict) -> Result:
    (x, y, _), (test_x, test_y, numbers) = map(_rows, map(bench.columns, ("train", "test")))
    classes, protocol, k = bench.data.classes, SweepProtocol(seed=bench.seed), min(NEIGHBOURS, len(y))
    if why := no_classes(y, test_y, protocol.least_rows, "objects"):
        return Result({}, {"objects": why})
    probes = sweep(x, y, test_x, test_y, classes=classes, protocol=protocol).alone
    metrics = {}
    for name in x:
        train, test = Split(x[name], y), Split(test_x[name], test_y)
        metrics[name] = {
            "knn": knn_accuracy(train, test, classes=classes, ks=(k,))[k],
            "linear": probes[name].accuracy,
            **{f"recall{n}": share for n, share in recall_at_k(test, ks=RECALL_KS).items()},
        }
        if numbers is not None:
            metrics[name]["same_object"] = recall_at_k(Split(test_x[name], numbers), ks=(1,))[1]
    chance = float(np.bincount(test_y).max() / len(test_y))
    details = {"train_objects": len(y), "test_objects": len(test_y), "most_frequent_class": chance}
    return Result(metrics, details=details)


OBJECTS = Task(
    _measure, ("mask", "class"), ("sparse", "dense"),
    lambda data: dict.fromkeys(("train", "test"), REDUCERS),
    lambda config: {
        "k": NEIGHBOURS, "recall": RECALL_KS, "gallery": "all other objects of the test images",
        **dataclasses.asdict(SweepProtocol(seed=config.eval.seed)),
    },
    least=(SweepProtocol().least_rows, max(RECALL_KS) + 1),
)  # fmt: skip
