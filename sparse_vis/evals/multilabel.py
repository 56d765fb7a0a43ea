"""Multi-label scores: mean average precision."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Shaped

from sparse_vis.errors import UserError
from sparse_vis.evals.features import AnyArray


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
