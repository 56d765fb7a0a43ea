"""LPIPS: perceptual distance of two images, from weighted distances between AlexNet's activations.

Source: Zhang et al., "The unreasonable effectiveness of deep features as a perceptual metric"; version 0.1.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from sparse_vis.runtime.errors import UserError

# Mean and standard deviation of ImageNet's colours on the scale [-1, 1], as published with the heads.
SHIFT = np.float32([-0.030, -0.088, -0.188])
SCALE = np.float32([0.458, 0.448, 0.450])
# Channels, kernel, stride and padding of AlexNet's convolutions; 3x3 max pooling, stride 2, precedes POOLED.
LAYERS = ((64, 11, 4, 2), (192, 5, 1, 2), (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1))
POOLED = (1, 2)
SMALLEST = 31  # side in pixels of the smallest image, which has one position after both max poolings
PRECISION = jax.lax.Precision.HIGHEST


class Lpips(nn.Module):
    """AlexNet's five convolutions with ReLU, and one non-negative weight per channel of each."""

    def setup(self):
        self.convs = [
            nn.Conv(channels, (size, size), strides=stride, padding=padding, precision=PRECISION)
            for channels, size, stride, padding in LAYERS
        ]
        self.heads = [
            self.param(f"head_{i}", nn.initializers.ones, (channels,), jnp.float32)
            for i, (channels, *_) in enumerate(LAYERS)
        ]

    def __call__(self, x: Float[Array, "B H W 3"], y: Float[Array, "B H W 3"]) -> Float[Array, " B"]:
        """Σ over layers of the mean over positions of w · (x̂ − ŷ)², where x̂ are activations of unit length.

        x and y are RGB in [0, 1] (scaled to [−1, 1] here). Raises UserError below 31 pixels per side.
        """
        height, width = x.shape[1:3]
        if min(height, width) < SMALLEST:
            raise UserError(
                f"LPIPS needs images of at least {SMALLEST} pixels per side, but these have {height}x{width}."
            )
        pairs = zip(self.heads, self._activations(x), self._activations(y), strict=True)
        return sum(((_unit(a) - _unit(b)) ** 2 * head).sum(-1).mean((1, 2)) for head, a, b in pairs)

    def _activations(self, pixels: Float[Array, "B H W 3"]) -> list[Float[Array, "B h w c"]]:
        x, found = (2 * pixels - 1 - SHIFT) / SCALE, []
        for i, conv in enumerate(self.convs):
            x = nn.relu(conv(nn.max_pool(x, (3, 3), strides=(2, 2)) if i in POOLED else x))
            found.append(x)
        return found


def _unit(x: Float[Array, "B h w c"]) -> Float[Array, "B h w c"]:
    return x / (jnp.sqrt((x * x).sum(-1, keepdims=True)) + 1e-10)
