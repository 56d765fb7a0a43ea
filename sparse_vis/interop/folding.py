"""What other backbones compute and our encoder does not, moved into its weights; their position tables."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from sparse_vis.models.encoder import IMAGENET_MEAN, IMAGENET_STD, resize_position_table

Pixels = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of R, G, B in [0, 1]
IMAGENET: Pixels = (IMAGENET_MEAN, IMAGENET_STD)


def fold_scales(blocks: dict, attention: np.ndarray, mlp: np.ndarray) -> dict:
    """Blocks with LayerScale in their last linear maps: scale * (x W + b) = x (W scale) + b scale.

    Args:
        blocks: parameters, stacked. attention, mlp: scale factors behind each, (layers, d).
    """
    scaled = {
        name: {
            "kernel": blocks[name]["kernel"] * scale[:, None, :],
            "bias": blocks[name]["bias"] * scale,
        }
        for name, scale in (("attention_out", attention), ("mlp_out", mlp))
    }
    return {**blocks, **scaled}


def fold_pixels(embedding: dict, theirs: Pixels) -> dict:
    """A patch embedding of pixels scaled as `theirs`, for pixels that our encoder scales by IMAGENET.

    With theirs t = (x - m') / s' and ours u = (x - m) / s of a pixel x in [0, 1], t = u s/s' + (m - m')/s'.
    """
    if theirs == IMAGENET:
        return embedding
    (mean, std), (their_mean, their_std) = np.float64(IMAGENET), np.float64(theirs)
    kernel = embedding["kernel"].astype(np.float64).reshape(-1, 3, embedding["kernel"].shape[-1])
    shift = np.einsum("pcd,c->d", kernel, (mean - their_mean) / their_std)
    scaled = (kernel * (std / their_std)[:, None]).reshape(embedding["kernel"].shape)
    return {"kernel": np.float32(scaled), "bias": np.float32(embedding["bias"] + shift)}


def resized_table(table: np.ndarray, grid: tuple[int, int], antialias: bool) -> np.ndarray:
    """A position table for another grid, as transformers resizes it: with registers antialiased, else not."""
    side = math.isqrt(len(table))
    if not antialias or grid == (side, side):
        return np.asarray(resize_position_table(jnp.asarray(table), grid))
    square = jnp.asarray(table).reshape(side, side, -1)
    resized = jax.image.resize(square, (*grid, square.shape[-1]), "cubic", antialias=True)
    return np.asarray(resized).reshape(grid[0] * grid[1], -1)
