"""Fit a classifier to labelled features: by the sweep of `linear.py`, or from nearest images as `knn.py`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Integer

from sparse_vis.evals.classes.knn import TEMPERATURE, unit
from sparse_vis.evals.classes.linear import SweepProtocol, fit_all, scores
from sparse_vis.evals.features import AnyArray, check_labelled
from sparse_vis.models.classifier import LinearClassifier, NearestClassifier
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.names import escaped

KS = 10  # number of images that vote, unless the user gives another
SHOWN = 4  # most names of classes in a message


def held_out(
    labels: Integer[AnyArray, " N"], share: float, seed: int
) -> tuple[Int[np.ndarray, " fitted"], Int[np.ndarray, " held"]]:
    """Rows to fit and rows to hold out: a random share of each class; both get at least one row of it."""
    rng, fitted, held = np.random.default_rng(seed), [], []
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(np.asarray(labels) == label))
        count = min(max(1, round(share * len(rows))), len(rows) - 1)
        held.append(rows[:count])
        fitted.append(rows[count:])
    return np.sort(np.concatenate(fitted)), np.sort(np.concatenate(held))


def check_classes(
    labels: Integer[AnyArray, " N"], classes: Sequence[str], what: str, kind: str, share: float
) -> None:
    """Raise UserError for labels to which no classifier can be fitted, or on which none can be measured.

    Args:
        labels: of the images, -1 for none. what: the images, in words. kind: "linear" or "knn".
        share: of the images that is held out.
    """
    known = np.asarray(labels)[np.asarray(labels) >= 0]
    present, counts = np.unique(known, return_counts=True)
    if not len(classes) or not len(known):
        raise UserError(
            f"{what} have no classes; a probe needs labelled images: one subfolder per class, a table with "
            "a column of labels, or in Python pairs (image, label)."
        )
    if present[-1] >= len(classes):
        raise UserError(
            f"{what} have the label {present[-1]}, but only {len(classes)} classes have names; name them all."
        )
    if len(present) == 1:
        only = escaped(classes[present[0]])
        raise UserError(f"{what} are all of one class ({only}); a probe needs images of 2 or more.")
    if len(single := present[counts == 1]):
        names = ", ".join(escaped(classes[label]) for label in single[:SHOWN])
        more = f" and {len(single) - SHOWN} more" if len(single) > SHOWN else ""
        raise UserError(
            f"{what} have a single image of {names}{more}; a class needs two, one to fit and one to hold "
            "out: add images, or leave the class out."
        )
    fitted, least = len(held_out(known, share, 0)[0]), SweepProtocol().least_rows
    if kind == "linear" and fitted < least:
        raise UserError(
            f"{what} leave {fitted} images to fit, and a linear probe needs {least}; add images, or use the "
            "nearest images (knn)."
        )


def fit_linear(
    x: Float[AnyArray, "N f"], y: Integer[AnyArray, " N"], classes: tuple[str, ...], feature: str, seed: int
) -> tuple[LinearClassifier, dict[str, np.ndarray], dict]:
    """Fit as `sweep` does, choose the learning rate, and fold the features' standardisation into the weights.

    Returns:
        The classifier, its parameters, and {"learning_rate": chosen}.
    """
    check_labelled("labelled", x, y, len(classes))
    protocol = SweepProtocol(seed=seed)
    found, rows = fit_all({feature: x}, y, len(classes), protocol)
    probes = found[feature]
    accuracy, _, loss = scores(probes, x, y, rows)
    best = int(np.lexsort((loss, -accuracy))[0])
    weight = np.asarray(probes.weight[best], np.float64) * probes.scale[:, None]
    bias = np.asarray(probes.bias[best], np.float64) - probes.shift @ weight
    tensors = {"kernel": weight.astype(np.float32), "bias": bias.astype(np.float32)}
    rate = {"learning_rate": protocol.learning_rates[best]}
    return LinearClassifier(classes, feature, x.shape[1]), tensors, rate


def fit_nearest(
    x: Float[AnyArray, "N f"], y: Integer[AnyArray, " N"], classes: tuple[str, ...], feature: str, k: int
) -> tuple[NearestClassifier, dict[str, np.ndarray], dict]:
    """A classifier that holds all labelled images, of which the k nearest vote (all, if there are fewer).

    Returns the classifier, its parameters, and {}.
    """
    check_labelled("labelled", x, y, len(classes))
    classifier = NearestClassifier(classes, feature, x.shape[1], len(x), min(k, len(x)), TEMPERATURE)
    return classifier, {"gallery": unit(x), "label": np.asarray(y, np.int32)}, {}
