"""Inception-v3 of 2015, which defines the Fréchet Inception distance: images to 2048 pooled features.

It differs from today's torchvision network: average pooling excludes padding, the last block has max pooling
in its place, and images are resized as in TensorFlow 1. networks.py reads the weights and folds batch norms
into the convolutions; modules have the names of the torch file.

Source: Szegedy et al., "Rethinking the Inception architecture" (arXiv 1512.00567), as in torch-fidelity.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, UInt8

from sparse_vis.evals.maps.localization import bilinear_weights

SIDE = 299
# The distance depends on small differences of features, which TF32 or bf16 products would change.
PRECISION = jax.lax.Precision.HIGHEST
ROW, COLUMN = (1, 7), (7, 1)
SPLIT = (("a", (1, 3)), ("b", (3, 1)))  # kernels side by side, at the end of a branch

reduced = partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2))
maximum = partial(nn.max_pool, window_shape=(3, 3), padding="SAME")


def average(x: jax.Array) -> jax.Array:
    """Average over 3 x 3 without the padding, in x's dtype even if JAX has 64 bits enabled."""
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False).astype(x.dtype)


def tf1_bilinear_matrix(size_in: int, size_out: int) -> Float[np.ndarray, "out in"]:
    """Matrix of a bilinear resize as in TensorFlow 1: output i samples at i · in / out, not antialiased."""
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
        x = _conv(x, "Conv2d_1a_3x3", 32, 3, 2)
        x = _conv(x, "Conv2d_2a_3x3", 32, 3, padding="VALID")
        x = reduced(_conv(x, "Conv2d_2b_3x3", 64, 3))
        x = _conv(x, "Conv2d_3b_1x1", 80, 1)
        x = reduced(_conv(x, "Conv2d_4a_3x3", 192, 3, padding="VALID"))
        for letter, pooled in zip("bcd", (32, 64, 64), strict=True):  # 35 x 35
            chains = (("branch1x1", (64, 1)), ("branch5x5", (48, 1), (64, 5)),
                      ("branch3x3dbl", (64, 1), (96, 3), (96, 3)))  # fmt: skip
            x = Mixed(chains, average, pooled, name=f"Mixed_5{letter}")(x)
        chains = (("branch3x3", (384, 3, 2)), ("branch3x3dbl", (64, 1), (96, 3), (96, 3, 2)))
        x = Mixed(chains, reduced, name="Mixed_6a")(x)
        for letter, c in zip("bcde", (128, 160, 160, 192), strict=True):  # 17 x 17
            chains = (("branch1x1", (192, 1)), ("branch7x7", (c, 1), (c, ROW), (192, COLUMN)),
                      ("branch7x7dbl", (c, 1), (c, COLUMN), (c, ROW), (c, COLUMN), (192, ROW)))  # fmt: skip
            x = Mixed(chains, average, 192, name=f"Mixed_6{letter}")(x)
        chains = (("branch3x3", (192, 1), (320, 3, 2)),
                  ("branch7x7x3", (192, 1), (192, ROW), (192, COLUMN), (192, 3, 2)))  # fmt: skip
        x = Mixed(chains, reduced, name="Mixed_7a")(x)
        chains = (("branch1x1", (320, 1)), ("branch3x3", (384, 1), (384, SPLIT)),
                  ("branch3x3dbl", (448, 1), (384, 3), (384, SPLIT)))  # fmt: skip
        x = Mixed(chains, average, 192, name="Mixed_7b")(x)  # 8 x 8
        x = Mixed(chains, maximum, 192, name="Mixed_7c")(x)
        return x.mean(axis=(1, 2))


class Mixed(nn.Module):
    """Parallel branches: chains of convolutions, and a pooling."""

    chains: tuple[tuple, ...]  # (name, step 1, step 2, …); a step is (features, kernel[, stride])
    pool: Callable[[jax.Array], jax.Array]
    pooled: int = 0  # channels of a convolution after the pooling; 0 for none

    @nn.compact
    def __call__(self, x: Float[Array, "B h w c"]) -> Float[Array, "B h2 w2 out"]:
        branches = [branch for name, *steps in self.chains for branch in _chain(x, name, steps)]
        pooled = self.pool(x)
        return jnp.concatenate(
            [*branches, _conv(pooled, "branch_pool", self.pooled, 1) if self.pooled else pooled], axis=-1
        )


def _chain(x: jax.Array, name: str, steps: list[tuple]) -> list[jax.Array]:
    """Results of successive convolutions, called name_1, name_2, …, or name if there is one."""
    for i, (features, kernel, *stride) in enumerate(steps, start=1):
        unit = name if len(steps) == 1 else f"{name}_{i}"
        if kernel == SPLIT:
            return [_conv(x, f"{unit}{side}", features, shape) for side, shape in SPLIT]
        x = _conv(x, unit, features, kernel, *stride)
    return [x]


def _conv(x, name, features, kernel, stride=1, *, padding=None):
    """Convolution and ReLU; padded by default, to keep the size, only if the stride is 1."""
    size = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = padding or ("SAME" if stride == 1 else "VALID")
    conv = nn.Conv(features, size, strides=stride, padding=padding, precision=PRECISION, name=name)
    return nn.relu(conv(x))
