"""Inception-v3 as the Fréchet Inception distance has used it since 2015: images to 2048 pooled features.

It differs from today's torchvision network: average pooling excludes padding, the last block uses max pooling
instead, and images are resized as in TensorFlow 1. networks.py reads the weights and folds batch norms
into the convolutions; modules have the names of the torch file.

Source: Szegedy et al., "Rethinking the Inception architecture" (arXiv 1512.00567), as in torch-fidelity.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, UInt8

from sparse_vis.evals.maps.localization import bilinear_weights

SIDE = 299
# The distance depends on small differences of features, which TF32 or bf16 products would change.
PRECISION = jax.lax.Precision.HIGHEST


def tf1_bilinear_matrix(size_in: int, size_out: int) -> Float[np.ndarray, "out in"]:
    """Bilinear resize of a row as in TensorFlow 1: output i samples at i · in / out, without antialiasing."""
    position = np.arange(size_out, dtype=np.float32) * np.float32(size_in / size_out)
    return bilinear_weights(position, size_in).astype(np.float32)


class Inception(nn.Module):
    """Pooled features of RGB images of any size, resized here to 299 x 299."""

    @nn.compact
    def __call__(self, images: UInt8[Array, "B H W 3"]) -> Float[Array, "B 2048"]:
        down, across = (tf1_bilinear_matrix(size, SIDE) for size in images.shape[1:3])
        pixels = images.astype(jnp.float32)
        pixels = jnp.einsum("ih,bhwc,jw->bijc", down, pixels, across, precision=PRECISION)
        x = (pixels - 128) / 128
        x = _conv(x, "Conv2d_1a_3x3", 32, 3, stride=2)
        x = _conv(x, "Conv2d_2a_3x3", 32, 3, padding="VALID")
        x = _reduce(_conv(x, "Conv2d_2b_3x3", 64, 3))
        x = _conv(x, "Conv2d_3b_1x1", 80, 1)
        x = _reduce(_conv(x, "Conv2d_4a_3x3", 192, 3, padding="VALID"))
        for letter, pooled in zip("bcd", (32, 64, 64), strict=True):
            x = BlockA(pooled, name=f"Mixed_5{letter}")(x)
        x = BlockB(name="Mixed_6a")(x)
        for letter, width in zip("bcde", (128, 160, 160, 192), strict=True):
            x = BlockC(width, name=f"Mixed_6{letter}")(x)
        x = BlockD(name="Mixed_7a")(x)
        x = BlockE(_average, name="Mixed_7b")(x)
        x = BlockE(_maximum, name="Mixed_7c")(x)
        return x.mean(axis=(1, 2))


def _conv(x, name, features, kernel, *, stride=1, padding=None):
    """Convolution and ReLU; by default padded to keep the size if the stride is 1, else not padded."""
    size = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = padding or ("SAME" if stride == 1 else "VALID")
    conv = nn.Conv(features, size, strides=stride, padding=padding, precision=PRECISION, name=name)
    return nn.relu(conv(x))


def _chain(x, name, *steps):
    """Successive convolutions name_1, name_2, …; steps are pairs (features, kernel)."""
    for i, (features, kernel) in enumerate(steps, start=1):
        x = _conv(x, f"{name}_{i}", features, kernel)
    return x


def _reduce(x):
    return nn.max_pool(x, (3, 3), strides=(2, 2))


def _average(x):
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False).astype(x.dtype)


def _maximum(x):
    return nn.max_pool(x, (3, 3), padding="SAME")


class BlockA(nn.Module):
    """Branches 1x1, 5x5, two 3x3, and pooling, at 35 x 35; pooled: channels of the last branch."""

    pooled: int

    @nn.compact
    def __call__(self, x: Float[Array, "B h w c"]) -> Float[Array, "B h w out"]:
        one = _conv(x, "branch1x1", 64, 1)
        five = _chain(x, "branch5x5", (48, 1), (64, 5))
        double = _chain(x, "branch3x3dbl", (64, 1), (96, 3), (96, 3))
        return jnp.concatenate([one, five, double, _conv(_average(x), "branch_pool", self.pooled, 1)], -1)


class BlockB(nn.Module):
    """35 x 35 to 17 x 17."""

    @nn.compact
    def __call__(self, x: Float[Array, "B h w c"]) -> Float[Array, "B h2 w2 out"]:
        three = _conv(x, "branch3x3", 384, 3, stride=2)
        double = _chain(x, "branch3x3dbl", (64, 1), (96, 3))
        double = _conv(double, "branch3x3dbl_3", 96, 3, stride=2)
        return jnp.concatenate([three, double, _reduce(x)], -1)


class BlockC(nn.Module):
    """Branches 1x1, one and two factored 7x7, and pooling, at 17 x 17; width: inner channels."""

    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "B h w c"]) -> Float[Array, "B h w out"]:
        c, row, column = self.width, (1, 7), (7, 1)
        one = _conv(x, "branch1x1", 192, 1)
        seven = _chain(x, "branch7x7", (c, 1), (c, row), (192, column))
        double = _chain(x, "branch7x7dbl", (c, 1), (c, column), (c, row), (c, column), (192, row))
        return jnp.concatenate([one, seven, double, _conv(_average(x), "branch_pool", 192, 1)], -1)


class BlockD(nn.Module):
    """17 x 17 to 8 x 8."""

    @nn.compact
    def __call__(self, x: Float[Array, "B h w c"]) -> Float[Array, "B h2 w2 out"]:
        three = _conv(_chain(x, "branch3x3", (192, 1)), "branch3x3_2", 320, 3, stride=2)
        seven = _chain(x, "branch7x7x3", (192, 1), (192, (1, 7)), (192, (7, 1)))
        seven = _conv(seven, "branch7x7x3_4", 192, 3, stride=2)
        return jnp.concatenate([three, seven, _reduce(x)], -1)


class BlockE(nn.Module):
    """Branches 1x1, split 3x3, and pooling, at 8 x 8; pool: pooling of the last branch."""

    pool: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x: Float[Array, "B h w c"]) -> Float[Array, "B h w 2048"]:
        one = _conv(x, "branch1x1", 320, 1)
        three = _chain(x, "branch3x3", (384, 1))
        double = _chain(x, "branch3x3dbl", (448, 1), (384, 3))
        split = [
            _conv(inner, f"{name}{side}", 384, kernel)
            for inner, name in ((three, "branch3x3_2"), (double, "branch3x3dbl_3"))
            for side, kernel in (("a", (1, 3)), ("b", (3, 1)))
        ]
        return jnp.concatenate([one, *split, _conv(self.pool(x), "branch_pool", 192, 1)], -1)
