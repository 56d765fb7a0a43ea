"""The segmentation head: its input, the interpolation of its logits to pixels, and its loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxtyping import Array, Float, Integer

from sparse_vis.evals.features import AnyArray
from sparse_vis.evals.maps.miou import IGNORE
from sparse_vis.models.linear import uniform_linear

MOMENTUM = 0.9  # of BatchNorm's running statistics; 0.1 in PyTorch's convention


class Tokens(NamedTuple):
    """Input of a head.

    Attributes:
        x: (B, t, f) float: one token per patch (U or Z), or the r tokens of S.
        L: (B, n, t) float, weights of the tokens at each patch; None if there is one token per patch.
    """

    x: AnyArray
    L: AnyArray | None = None


class Head(nn.Module):
    """Optional BatchNorm, then a 1×1 convolution: the same linear map at every token.

    Attributes:
        classes: number of classes. batch_norm: whether to use BatchNorm. dtype: of the linear map.
    """

    classes: int
    batch_norm: bool
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Float[Array, "B t f"], train: bool) -> Float[Array, "B t classes"]:
        if self.batch_norm:
            x = nn.BatchNorm(use_running_average=not train, momentum=MOMENTUM, epsilon=1e-5)(x)
        return uniform_linear(self.classes, x.shape[-1], self.dtype)(x).astype(jnp.float32)


def unbiased(old: dict, new: dict, rows: int) -> dict:
    """BatchNorm's running statistics after a step, with the unbiased variance (rows - 1), as in PyTorch.

    Args:
        old, new: {"mean", "var"} before and after Flax's step, which uses the biased variance.
        rows: number of rows in the batch.
    """
    kept = MOMENTUM * old["var"]
    return {**new, "var": kept + (new["var"] - kept) * (rows / max(rows - 1, 1))}


def variants(features: Mapping[str, AnyArray]) -> dict[str, Tokens]:
    """The possible inputs from an encoder's features: "U", "Z" = L S, and "SL", the factors S and L.

    Args:
        features: dense (B, n, d), sparse (B, r, d) and spatial (B, n, r), any of them.
    """
    found = {}
    if "dense" in features:
        found["U"] = Tokens(features["dense"])
    if "sparse" in features and "spatial" in features:
        S, L = features["sparse"], features["spatial"]
        found |= {"Z": Tokens(L @ S), "SL": Tokens(S, L)}
    return found


def pixel_logits(
    logits: Float[Array, "B t classes"],
    L: Float[Array, "B n t"] | None,
    grid: tuple[int, int],
    size: tuple[int, int],
) -> Float[Array, "B H W classes"]:
    """Logits at every pixel, interpolated bilinearly (half-pixel centres, edge values extended).

    With L, class *probabilities* of the tokens are weighted by L and interpolated, and their logarithm is
    returned: p(class | pixel) = Σ_t L[pixel, t] softmax(logits[t]). Weighting logits instead would equal the
    linear head on Z: rows of L sum to one, so L (S W + b) = Z W + b.

    Args:
        logits: (B, t, classes) of the head. L: as in Tokens.
        grid: (gh, gw) patches, row-major. size: (H, W) pixels that the grid covers.
    """
    patches = logits if L is None else jnp.matmul(L, jax.nn.softmax(logits), precision="highest")
    image = patches.reshape(len(patches), *grid, -1)
    image = jax.image.resize(image, (len(image), *size, image.shape[-1]), "bilinear", antialias=False)
    return image if L is None else jnp.log(jnp.maximum(image, 1e-12))


def segmentation_loss(
    logits: Float[AnyArray, "B H W classes"], labels: Integer[AnyArray, "B H W"], dice: float | Array = 1.0
) -> Float[Array, ""]:
    """Mean cross-entropy plus dice · (1 − mean over classes of (2 Σ p y + 1) / (Σ p + Σ y + 1)).

    Both leave out pixels labelled 255; the Dice sums run over all other pixels of the batch.

    Args:
        logits: (B, H, W, classes). labels: (B, H, W) class or 255. dice: weight of the second term.
    """
    known = labels != IGNORE
    y = jnp.where(known, labels, 0)
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    p = jax.nn.softmax(logits) * known[..., None]
    one_hot = jax.nn.one_hot(y, logits.shape[-1], dtype=jnp.float32) * known[..., None]
    both, each = (p * one_hot).sum((0, 1, 2)), (p + one_hot).sum((0, 1, 2))
    overlap = jnp.mean((2 * both + 1) / (each + 1))
    return jnp.sum(cross_entropy * known) / jnp.maximum(known.sum(), 1) + dice * (1 - overlap)
