"""mIoU of a whole data set from one confusion matrix."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int, Integer

from sparse_vis.evals.features import AnyArray

IGNORE = 255


def confusion(
    predicted: Integer[AnyArray, "*shape"], labels: Integer[AnyArray, "*shape"], classes: int
) -> Int[np.ndarray, "classes classes"]:
    """Pixels per true class (row) and predicted class (column); pixels labelled 255 do not count."""
    true = np.asarray(labels).astype(np.int64)
    cells = (true * classes + np.asarray(predicted))[true != IGNORE]
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def mean_iou(matrix: Int[AnyArray, "classes classes"]) -> tuple[float, Float[np.ndarray, " classes"]]:
    """mIoU of a confusion matrix, and the IoU of every class.

    Returns:
        The mean over the classes that occur in labels or predictions (nan if none does), and (classes,) IoUs,
        nan for the classes that were left out.
    """
    both = np.diag(matrix)
    union = matrix.sum(axis=0) + matrix.sum(axis=1) - both
    iou = np.where(union > 0, both / np.maximum(union, 1), np.nan)
    return float(iou[union > 0].mean()) if union.any() else float("nan"), iou
