"""Fréchet distance between two sets of features, and the images of rFID: originals and reconstructions.

Source: Heusel et al., "GANs trained by a two time-scale update rule" (arXiv 1706.08500); features of
sparse_vis.evals.pixels.inception.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from sparse_vis.data.decode import to_square
from sparse_vis.evals.features import AnyArray
from sparse_vis.ops.moments import Moments
from sparse_vis.runtime.errors import UserError

SIDE = 256


def frechet_distance(a: Moments, b: Moments) -> float:
    """‖m₁ − m₂‖² + tr(C₁ + C₂ − 2 (C₁ C₂)^½), with covariances over n − 1; squared, 0 or more.

    With C = F Fᵀ, tr (C₁ C₂)^½ is the sum of the singular values of F₁ᵀ F₂. F is real and has as many columns
    as the rank of C, so that sets with fewer images than features need no jitter; for them scipy.linalg.sqrtm
    of C₁ C₂ fails or returns noise. Raises UserError for fewer than two rows, or features of two sizes.
    """
    if min(a.count, b.count) < 2:
        raise UserError(
            f"the Fréchet distance needs at least 2 images per set, but these have {a.count} and {b.count}."
        )
    if len(a.mean) != len(b.mean):
        what = f"the sets have {len(a.mean)} and {len(b.mean)} features"
        raise UserError(f"{what}; compute both with the same network.")
    shared = np.linalg.svd(_factor(a).T @ _factor(b), compute_uv=False).sum()
    spread = np.trace(a.scatter) / (a.count - 1) + np.trace(b.scatter) / (b.count - 1)
    # For equal sets, rounding may give a value slightly below zero.
    return max(0.0, float(np.sum((a.mean - b.mean) ** 2) + spread - 2 * shared))


def _factor(moments: Moments) -> Float[np.ndarray, "f rank"]:
    """F with F Fᵀ = covariance, by pivoted Cholesky, which stops when only rounding errors remain."""
    import scipy.linalg  # here, as few evaluations need it

    covariance = moments.scatter / (moments.count - 1)
    factor, pivots, rank, _ = scipy.linalg.lapack.dpstrf(covariance, lower=1)
    found = np.empty((len(covariance), rank))
    found[pivots - 1] = np.tril(factor)[:, :rank]
    return found


def at_256(images: Iterable[UInt8[np.ndarray, "_ _ 3"]]) -> UInt8[np.ndarray, "N 256 256 3"]:
    """Resize each short side to 256 pixels (Pillow's bicubic, antialiased, 8-bit), then crop 256 x 256.

    For both sets of images of rFID and LPIPS. The long side and the offset of the crop are rounded
    differently from torchvision, by up to one pixel.
    """
    how = dict(short_side=SIDE, resample=Image.Resampling.BICUBIC)
    return np.stack([to_square(image, SIDE, **how) for image in images])


def to_uint8(images: Float[AnyArray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
    """Reconstructions in [0, 1] as the 8-bit images that a file would hold: clipped and rounded."""
    return np.uint8(np.round(255 * np.clip(np.asarray(images, np.float32), 0, 1)))
