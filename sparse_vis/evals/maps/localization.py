"""How well the localization matrix finds objects: segments of L compared with true instance masks.

In all scores, pred (N, H, W) is the segment and true (N, H, W) the instance of every pixel, as small
integers of which 0 is background in `true`. Negative ones raise UserError.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int, Integer

from sparse_vis.evals.features import AnyArray
from sparse_vis.runtime.errors import UserError

BLOCK = 64  # images at a time: bounds the memory of full-resolution intermediates
Masks = Integer[AnyArray, "N H W"]


def token_segments(
    L: Float[AnyArray, "N n r"], grid: tuple[int, int], size: tuple[int, int]
) -> Int[np.ndarray, "N H W"]:
    """Every pixel's token of largest L, 0 … r−1.

    L is interpolated bilinearly (half-pixel centres, edge values extended) *before* the argmax, so that
    segment borders do not follow the patch grid, as they would if the argmax were enlarged.

    Args:
        grid: (gh, gw), with n = gh·gw patches in row-major order.
        size: (H, W) pixels that the grid covers, gh·p and gw·p for patch size p. If an image's sides are no
            multiples of p, crop the true masks at the bottom and right, as the encoder crops the image.

    Raises:
        UserError: n is not gh·gw.
    """
    gh, gw = grid
    L = np.asarray(L, np.float32)
    N, n, r = L.shape
    if n != gh * gw:
        what = f"L has {n} patches but the grid {gh}x{gw} has {gh * gw}"
        raise UserError(f"{what}; pass the grid L was computed on.")
    down, across = (
        bilinear_weights((np.arange(pixels) + 0.5) * cells / pixels - 0.5, cells).astype(np.float32)
        for cells, pixels in zip(grid, size, strict=True)
    )
    segments = np.empty((N, *size), np.int32)
    for start in range(0, N, BLOCK):
        part = L[start : start + BLOCK].reshape(-1, gh, gw * r)
        tall = (down @ part).reshape(-1, size[0], gw, r)
        segments[start : start + BLOCK] = (across @ tall).argmax(axis=-1)
    return segments


def bilinear_weights(position: Float[np.ndarray, " points"], cells: int) -> Float[np.ndarray, "points cells"]:
    """Bilinear weights of the samples 0 … cells−1 at these positions; edges are extended; rows sum to one."""
    distance = np.abs(np.clip(position, 0, cells - 1)[:, None] - np.arange(cells))
    return np.maximum(0, 1 - distance)


def foreground_ari(pred: Masks, true: Masks) -> Float[np.ndarray, " N"]:
    """Adjusted Rand index between segments and instances, over foreground pixels only; chance is 0.

    ARI = (Σ_ij C(n_ij, 2) − E) / ((A + B)/2 − E), A = Σ_i C(a_i, 2), B = Σ_j C(b_j, 2), E = A·B / C(n, 2),
    where n_ij counts the pixels of instance i in segment j, and a, b are its margins; nan where an image has
    fewer than two instances.

    Source: Hubert and Arabie 1985, "Comparing partitions".
    """
    counts = _contingency(pred, true)[:, 1:].astype(np.float64)
    instances = counts.sum(axis=2)
    total = _pairs(instances.sum(axis=1))
    both = _pairs(counts).sum(axis=(1, 2))
    a, b = _pairs(instances).sum(axis=1), _pairs(counts.sum(axis=1)).sum(axis=1)
    expected = a * b / np.maximum(total, 1)
    spread = (a + b) / 2 - expected
    # With two or more instances, spread is zero only if all parts are single pixels; then both agree.
    ari = np.where(spread > 0, (both - expected) / np.where(spread > 0, spread, 1), 1.0)
    return np.where((instances > 0).sum(axis=1) >= 2, ari, np.nan)


def best_overlap(pred: Masks, true: Masks) -> Float[np.ndarray, " N"]:
    """The best IoU of each true instance with any segment, averaged over an image's instances.

    It is nan for an image without instances. All pixels of a segment count, also those on background; several
    instances may have the same best segment.
    """
    counts = _contingency(pred, true)
    instances = counts.sum(axis=2)[:, 1:]
    union = instances[:, :, None] + counts.sum(axis=1)[:, None, :] - counts[:, 1:]
    best = (counts[:, 1:] / np.maximum(union, 1)).max(axis=2, initial=0)
    number = (instances > 0).sum(axis=1)
    return np.where(number > 0, best.sum(axis=1) / np.maximum(number, 1), np.nan)


def mean_best_overlap(pred: Masks, true: Masks) -> float:
    """mBO of a data set: the mean of `best_overlap` over the images that have an instance; nan without any.

    This is the instance-level mBO of the object-centric literature: background is not an object, and all
    images have the same weight.

    Source: Pont-Tuset et al. 2017, "Multiscale Combinatorial Grouping"; averaged as in Seitzer et al. 2023.
    """
    return mean_known(best_overlap(pred, true))


def mean_known(scores: Float[AnyArray, " N"]) -> float:
    """The mean over the images that have a score; nan if none has."""
    known = scores[~np.isnan(scores)]
    return float(known.mean()) if known.size else float("nan")


def _pairs(n: np.ndarray) -> np.ndarray:
    return n * (n - 1) / 2


def _contingency(pred: Masks, true: Masks) -> Int[np.ndarray, "N T P"]:
    """Number of pixels of each image, per pair of true instance and segment."""
    pred, true = np.asarray(pred), np.asarray(true)
    for name, mask in (("predicted segments", pred), ("true masks", true)):
        if mask.size == 0 or mask.min() < 0:
            raise UserError(f"the {name} are empty or contain negative numbers; label pixels 0, 1, 2, ….")
    T, P = int(true.max()) + 1, int(pred.max()) + 1
    counts = np.empty((len(true), T, P), np.int64)
    for start in range(0, len(true), BLOCK):
        t, p = true[start : start + BLOCK].astype(np.int64), pred[start : start + BLOCK]
        cell = (np.arange(len(t))[:, None, None] * T + t) * P + p
        counts[start : start + BLOCK] = np.bincount(cell.ravel(), minlength=len(t) * T * P).reshape(-1, T, P)
    return counts
