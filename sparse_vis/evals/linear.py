"""Linear probes on frozen features: feature and learning rate chosen on a held-out part of train."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Integer

from sparse_vis.evals.features import AnyArray, Split, check_labelled
from sparse_vis.evals.logistic import Protocol
from sparse_vis.evals.probe import fit_rates, scores


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


def candidates(features: Mapping[str, AnyArray]) -> dict[str, Float[np.ndarray, "B _"]]:
    """One vector per image in each of the sweep's forms, as far as the encoder's features allow.

    "mean_S"; "concat_S", the tokens of S side by side in the order of their queries; "cls"; "cls_mean_U", CLS
    and mean U side by side. An encoder with neither S nor CLS (raw pixels, PCA) has "mean_U" instead.

    Args:
        features: sparse (B, r, d), cls (B, 1, d) and dense (B, n, d), any of them. Fits `extract_features` as
            `reduce`, so that U is never kept.
    """
    out, found = {}, {key: np.asarray(value, np.float32) for key, value in features.items()}
    if "sparse" in found:
        S = found["sparse"]
        out |= {"mean_S": S.mean(axis=1), "concat_S": S.reshape(len(S), -1)}
    if "cls" in found:
        out["cls"] = found["cls"][:, 0]
    if "dense" in found:
        mean = found["dense"].mean(axis=1)
        if "cls" in found:
            out["cls_mean_U"] = np.concatenate([out["cls"], mean], axis=1)
        elif "sparse" not in found:
            out["mean_U"] = mean
    return out


def sweep(
    train: Mapping[str, Float[AnyArray, "N _"]],
    train_y: Integer[AnyArray, " n_labels"],
    test: Mapping[str, Float[AnyArray, "M _"]],
    test_y: Integer[AnyArray, " m_labels"],
    *,
    classes: int,
    protocol: Protocol = Protocol(),
) -> LinearResult:
    """The best of several features and learning rates, chosen on a held-out part of train; one look at test.

    All rates of a feature train together under one vmap. Features follow one another, because their widths
    differ (d, r·d, d, 2d): padding all to r·d would cost three times as much at r = 16. All see the
    same rows. Of equal held-out accuracies the lowest loss wins; nothing is refitted.

    Args:
        train, test: the same names → (N, f) and (M, f) features, as from `candidates` or `pool`.
        train_y, test_y: (N,) and (M,) int in 0 … classes−1.
        classes: number of classes.
        protocol: see there.

    Raises:
        UserError: labels out of range, features that are not finite, or no rows left to hold out or to fit.
    """
    # DEVIATION: the published probe (linear_published.py) re-augments images and applies LayerNorm. Here
    # features are computed once for all probes, and standardising suits raw pixels too.
    for name in train:
        check_labelled(f"train ({name})", train[name], train_y, classes)
        check_labelled(f"test ({name})", test[name], test_y, classes)
    best = {name: fit_rates(Split(x, train_y), classes, protocol) for name, x in train.items()}
    chosen = min(best, key=lambda name: (-max(best[name].validation), best[name].loss))
    top1, top5, _ = scores(best[chosen], Split(test[chosen], test_y))
    return LinearResult(
        accuracy=float(top1),
        top5=float(top5),
        feature=chosen,
        learning_rate=best[chosen].learning_rate,
        validation={name: probe.validation for name, probe in best.items()},
    )


def linear_accuracies(
    train: Mapping[str, Float[AnyArray, "N _"]],
    train_y: Integer[AnyArray, " n_labels"],
    test: Mapping[str, Float[AnyArray, "M _"]],
    test_y: Integer[AnyArray, " m_labels"],
    *,
    classes: int,
    protocol: Protocol = Protocol(),
) -> dict[str, LinearResult]:
    """`sweep` of each feature by itself: one result per feature. Args and errors as there."""
    return {
        name: sweep(
            {name: train[name]}, train_y, {name: test[name]}, test_y, classes=classes, protocol=protocol
        )
        for name in train
    }
