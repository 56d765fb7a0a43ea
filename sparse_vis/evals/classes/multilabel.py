"""Images with sets of labels: a linear probe with one sigmoid per class, and mean average precision."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Shaped

from sparse_vis.evals.classes.logistic import Protocol, fit_all
from sparse_vis.evals.features import AnyArray
from sparse_vis.runtime.errors import UserError


@dataclass(frozen=True)
class MultilabelResult:
    """mAP on test of the chosen feature and rate, and the held-out mAPs of every feature and rate."""

    mean_average_precision: float
    feature: str
    learning_rate: float
    validation: dict[str, tuple[float, ...]]


def multilabel_probe(
    train: Mapping[str, Float[AnyArray, "N _"]],
    train_y: Shaped[AnyArray, "n_labels classes"],
    test: Mapping[str, Float[AnyArray, "M _"]],
    test_y: Shaped[AnyArray, "m_labels classes"],
    *,
    protocol: Protocol = Protocol(),
) -> MultilabelResult:
    """The sweep with sigmoid cross-entropy; the feature and rate with the best held-out mAP are tested.

    Ties go to the lower rate and the earlier feature.

    Args:
        train, test: the same names → (N, f) and (M, f) float features. train_y, test_y: bool or 0/1, one row
            per image.
        protocol: Protocol of logistic.py.

    Raises:
        UserError: no rows left to hold out or to fit, or a part without any label.
    """
    for name, features, y in (("train", train, train_y), ("test", test, test_y)):
        shapes = {key: x.shape for key, x in features.items()}
        if any(shape[0] != len(y) for shape in shapes.values()):
            raise UserError(
                f"The {name} set has features {shapes} and labels {np.shape(y)}; a "
                "multi-label probe needs one row of 0/1 per image, one column per class."
            )
    found, held_out = fit_all(train, train_y, np.shape(train_y)[1], protocol)

    def score(name: str, rate: int, x: AnyArray, y: AnyArray) -> float:
        f = found[name]
        logits = (x - f.shift) * f.scale @ np.asarray(f.weight[rate]) + np.asarray(f.bias[rate])
        return mean_average_precision(logits, y)

    rates, known = range(len(protocol.learning_rates)), np.asarray(train_y)[held_out]
    validation = {
        name: tuple(score(name, rate, np.asarray(x)[held_out], known) for rate in rates)
        for name, x in train.items()
    }
    best = max(validation, key=lambda name: max(validation[name]))
    rate = int(np.argmax(validation[best]))
    return MultilabelResult(
        score(best, rate, np.asarray(test[best]), test_y), best, protocol.learning_rates[rate], validation
    )


def mean_average_precision(
    scores: Float[AnyArray, "N classes"], targets: Shaped[AnyArray, "N classes"]
) -> float:
    """Mean over classes of the average precision, Σ_k (R_k − R_{k−1}) P_k over a class's distinct scores.

    Args:
        scores: (N, classes) float, larger is more likely; only their order within a class matters.
        targets: (N, classes) bool or 0/1. Classes without any image are left out of the mean.

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
    # Equal scores are retrieved together, so all get the precision at the end of their group.
    retrieved = np.searchsorted(falling, falling, side="right")
    return float(np.mean((np.cumsum(targets)[retrieved - 1] / retrieved)[targets]))
