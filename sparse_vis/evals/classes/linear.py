"""Linear probes on frozen features: feature and learning rate chosen on a held-out part of train."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Integer

from sparse_vis.evals.classes.logistic import Protocol
from sparse_vis.evals.classes.probe import fit_rates, scores
from sparse_vis.evals.features import AnyArray, Split, check_labelled


@dataclass(frozen=True)
class LinearResult:
    """The chosen probe.

    Attributes:
        accuracy: top-1 on test, in [0, 1].
        top5: share of test rows whose class has one of the five largest logits (1 if classes ≤ 5).
        feature: name of the chosen feature.
        learning_rate: the chosen rate.
        validation: feature → held-out accuracy of every learning rate, in their order.
    """

    accuracy: float
    top5: float
    feature: str
    learning_rate: float
    validation: dict[str, tuple[float, ...]]


def candidates(columns: Mapping[str, AnyArray]) -> dict[str, Float[np.ndarray, "N _"]]:
    """The features that a sweep compares, one vector per image, as far as the columns allow.

    "mean_S"; "concat_S", the tokens of S concatenated in the order of their queries; "cls"; "cls_mean_U", CLS
    and mean U concatenated. An encoder with neither S nor CLS (raw pixels, PCA) has "mean_U" instead.

    Args:
        columns: any of mean_S (N, d), concat_S (N, r·d), cls (N, d) and mean_U (N, d); others are ignored.
    """
    out = {name: np.asarray(columns[name]) for name in ("mean_S", "concat_S", "cls") if name in columns}
    if "mean_U" in columns:
        if "cls" in columns:
            out["cls_mean_U"] = np.concatenate([columns["cls"], columns["mean_U"]], axis=1)
        elif "mean_S" not in columns:
            out["mean_U"] = np.asarray(columns["mean_U"])
    return out


@dataclass(frozen=True)
class Sweep:
    """Results of a sweep.

    Attributes:
        chosen: test result of the feature and learning rate that are best on held-out rows.
        alone: feature → test result with the learning rate that is best for this feature. Reporting the best
            of these would be model selection on test.
    """

    chosen: LinearResult
    alone: dict[str, LinearResult]


def sweep(
    train: Mapping[str, Float[AnyArray, "N _"]],
    train_y: Integer[AnyArray, " n_labels"],
    test: Mapping[str, Float[AnyArray, "M _"]],
    test_y: Integer[AnyArray, " m_labels"],
    *,
    classes: int,
    protocol: Protocol = Protocol(),
) -> Sweep:
    """Train probes of several features at several learning rates together; choose one, and test it.

    All features and rates train under one vmap and see the same rows. Feature and rate are chosen on a
    held-out part of train; ties in accuracy go to the lowest loss; nothing is refitted.

    Args:
        train, test: the same names → (N, f) and (M, f) features, as from `candidates` or `pool`.
        train_y, test_y: (N,) and (M,) int in 0 … classes−1.
        classes: number of classes.
        protocol: Protocol of logistic.py.

    Raises:
        UserError: labels out of range, features that are not finite, or no rows left to hold out or to fit.
    """
    # DEVIATION: the published probe (linear_published.py) uses fresh crops in every epoch and LayerNorm. Here
    # features are computed once for all probes, and standardised, which suits raw pixels too.
    for name in train:
        check_labelled(f"train ({name})", train[name], train_y, classes)
        check_labelled(f"test ({name})", test[name], test_y, classes)
    best = fit_rates(train, train_y, classes, protocol)
    alone = {}
    for name, probe in best.items():
        top1, top5, _ = scores(probe, Split(test[name], test_y))
        alone[name] = LinearResult(
            float(top1), float(top5), name, probe.learning_rate, {name: probe.validation}
        )
    first = min(best, key=lambda name: (-max(best[name].validation), best[name].loss))
    validation = {name: probe.validation for name, probe in best.items()}
    return Sweep(dataclasses.replace(alone[first], validation=validation), alone)
