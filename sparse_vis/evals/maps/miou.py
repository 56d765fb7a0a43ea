"""mIoU of a data set from one confusion matrix, and the published scores, averaged over batches."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int, Integer

from sparse_vis.evals.features import AnyArray

IGNORE = 255


def confusion(
    predicted: Integer[AnyArray, "*shape"], labels: Integer[AnyArray, "*shape"], classes: int
) -> Int[np.ndarray, "classes classes"]:
    """Number of pixels per true class (row) and predicted class (column), without pixels labelled 255."""
    true = np.asarray(labels).astype(np.int64)
    cells = (true * classes + np.asarray(predicted))[true != IGNORE]
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def mean_iou(matrix: Int[AnyArray, "classes classes"]) -> tuple[float, Float[np.ndarray, " classes"]]:
    """mIoU of a confusion matrix, and the IoU of every class.

    Returns:
        The mean over classes that occur in labels or predictions (nan if none does), and (classes,) IoUs, nan
        for the other classes.
    """
    both = np.diag(matrix)
    union = matrix.sum(axis=0) + matrix.sum(axis=1) - both
    iou = np.where(union > 0, both / np.maximum(union, 1), np.nan)
    return float(iou[union > 0].mean()) if union.any() else float("nan"), iou


def batch_scores(
    predicted: Integer[AnyArray, "N ..."], labels: Integer[AnyArray, "N ..."], classes: int, batch: int
) -> dict[str, float]:
    """The published scores: macro-Jaccard and accuracy of each batch, averaged over batches.

    A batch's macro-Jaccard is the mean IoU over classes that occur in its labels or predictions. Batches in
    which every label is 255 are left out; nan if no other is left.

    Args:
        predicted, labels: of N images. classes: number of classes. batch: images per batch, the last may have
            fewer.
    """
    found = []
    for i in range(0, len(labels), batch):
        matrix = confusion(predicted[i : i + batch], labels[i : i + batch], classes)
        if matrix.any():
            found.append((mean_iou(matrix)[0], np.trace(matrix) / matrix.sum()))
    jaccard, accuracy = np.mean(found, axis=0) if found else (np.nan, np.nan)
    return {"macro_jaccard": float(jaccard), "accuracy": float(accuracy)}
