"""Accuracy of the classifier that a fine-tuned model has of its own."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from sparse_vis.evals.task import Bench, Reducer, Result, Task


def ranks(probability: Float[np.ndarray, "N classes"], label: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    """Number of classes that are more likely than the true one; -1 for images without a class."""
    true = np.take_along_axis(probability, np.maximum(label, 0)[:, None], axis=1)
    # Ties go to the lower class, as in argmax.
    earlier = (probability == true) & (np.arange(probability.shape[1]) < label[:, None])
    return np.where(label < 0, -1, ((probability > true) | earlier).sum(axis=1)).astype(np.int32)


RANKED = Reducer(
    ("probability",), lambda f, records, _: {"class_rank": ranks(f["probability"], records.label)}
)


def _measure(bench: Bench, config: ConfigDict) -> Result:
    rank = bench.columns(bench.data.labelled[1])["class_rank"]
    known = rank[rank >= 0]
    if not len(known):
        return Result({}, {"classifier": "no test image has a class"})
    return Result({"": {"accuracy": float(np.mean(known == 0)), "top5": float(np.mean(known < 5))}})


CLASSIFIER = Task(
    _measure, ("label",), ("probability",), lambda data: {data.labelled[1]: (RANKED,)},
    lambda config: {"classifier": "the model's own, of fine-tuning"},
)  # fmt: skip
