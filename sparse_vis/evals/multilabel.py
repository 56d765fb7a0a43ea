"""Images with sets of labels: a linear probe with one sigmoid per class, and mean average precision."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped

from sparse_vis.errors import UserError
from sparse_vis.evals.features import AnyArray, Split
from sparse_vis.evals.logistic import Protocol, fit_all


@dataclass(frozen=True)
class MultilabelResult:
    """mAP on test of the chosen learning rate, and the held-out mAP of every rate, in their order."""

    mean_average_precision: float
    learning_rate: float
    validation: tuple[float, ...]


def multilabel_probe(train: Split, test: Split, *, protocol: Protocol = Protocol()) -> MultilabelResult:
    """Linear probe with sigmoid cross-entropy; the rate of best held-out mAP (the lower of equals) sees test.

    Args:
        train, test: x (N, f) float features; y (N, classes) bool or 0/1, a row per image's set of labels.
        protocol: as for single labels.

    Raises:
        UserError: no rows left to hold out or to fit, or a part without any label.
    """
    for name, split in (("train", train), ("test", test)):
        if np.ndim(split.y) != 2 or len(split.x) != len(split.y):
            raise UserError(
                f"The {name} set has features {np.shape(split.x)} and labels {np.shape(split.y)}; a "
                "multi-label probe needs one row of 0/1 per image, one column per class."
            )
    probes, shift, scale, held_out = fit_all(train, np.shape(train.y)[1], protocol)
    weight, bias = np.asarray(probes["weight"]), np.asarray(probes["bias"])

    def score(rate: int, x: AnyArray, y: AnyArray) -> float:
        return mean_average_precision((x - shift) * scale @ weight[rate] + bias[rate], y)

    x, y = np.asarray(train.x)[held_out], np.asarray(train.y)[held_out]
    validation = tuple(score(rate, x, y) for rate in range(len(weight)))
    best = int(np.argmax(validation))
    return MultilabelResult(score(best, test.x, test.y), protocol.learning_rates[best], validation)


def mean_average_precision(
    scores: Float[AnyArray, "N classes"], targets: Shaped[AnyArray, "N classes"]
) -> float:
    """Mean over classes of the average precision, Σ_k (R_k − R_{k−1}) P_k over a class's distinct scores.

    Args:
        scores: (N, classes) float, larger is more likely; only their order within a class matters.
        targets: (N, classes) bool or 0/1. Classes that no image has are left out of the mean.

    Returns:
        float in [0, 1].

    Raises:
        UserError: no class has a positive, or scores are not finite.
    """
    scores, targets = np.asarray(scores), np.asarray(targets).astype(bool)
    if not targets.any():
        raise UserError("mAP needs at least one image with a label; the targets hold none.")
    if not np.isfinite(scores).all():
        raise UserError("The scores hold NaN or infinity; look for a diverged probe.")
    return float(
        np.mean([_average_precision(s, t) for s, t in zip(scores.T, targets.T, strict=True) if t.any()])
    )


def _average_precision(scores: Float[np.ndarray, " N"], targets: Shaped[np.ndarray, " N"]) -> float:
    order = np.argsort(-scores)
    falling, targets = -scores[order], targets[order]
    # Equal scores are retrieved together, so all of them have the precision at the end of their group.
    retrieved = np.searchsorted(falling, falling, side="right")
    return float(np.mean((np.cumsum(targets)[retrieved - 1] / retrieved)[targets]))
