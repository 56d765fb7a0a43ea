"""Decode Z into pixels or code logits (docs/method.md section 4)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from sparse_vis.models.block import Compute, Sizes, Trunk
from sparse_vis.models.layers import uniform_init, uniform_linear


def fourier_positions(matrix: Float[Array, "2 f"], grid: tuple[int, int]) -> Float[Array, "n two_f"]:
    """Random Fourier features of the patch centres (x, y) in [-1, 1]; channels alternate sin and cos.

    The matrix's first row is multiplied by x. Patches of the grid (rows, columns) are row-major.
    """
    rows, columns = grid
    y = 2 * (jnp.arange(rows, dtype=jnp.float32) + 0.5) / rows - 1
    x = 2 * (jnp.arange(columns, dtype=jnp.float32) + 0.5) / columns - 1
    coordinates = jnp.stack(jnp.meshgrid(x, y), axis=-1).reshape(-1, 2)
    angle = 2 * jnp.pi * jnp.matmul(coordinates, matrix, precision=jax.lax.Precision.HIGHEST)
    return jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1).reshape(rows * columns, -1)


class Decoder(nn.Module):
    """Linear projection, Fourier position code, pre-LN blocks, and an output head for each patch."""

    input_width: int  # d of the features
    sizes: Sizes
    patch: int  # side in pixels
    codes: int  # size of the codebook; 0: the target is pixels
    compute: Compute = Compute()

    def setup(self):
        width = self.sizes.width
        self.proj = uniform_linear(width, self.input_width, self.compute.dtype)
        self.fourier = self.param("fourier", nn.initializers.normal(1.0, jnp.float32), (2, width // 2))
        self.trunk = Trunk(self.sizes, self.compute)
        if self.codes:
            self.head = uniform_linear(self.codes, width)
        else:
            # The published head is a transposed convolution: PyTorch's fan-in is then the size of the output
            # patch, and the bias is one number per colour.
            init = uniform_init(self.patch * self.patch * 3)
            self.pixel_kernel = self.param("pixel_kernel", init, (width, self.patch**2, 3))
            self.pixel_bias = self.param("pixel_bias", init, (3,))

    def features(self, Z: Float[Array, "B n d"], grid: tuple[int, int]) -> Float[Array, "B n w"]:
        """Decoder features before the head; no gradient reaches the Fourier matrix."""
        code = fourier_positions(jax.lax.stop_gradient(self.fourier), grid)
        return self.trunk(self.proj(Z) + code.astype(self.compute.dtype))

    def __call__(self, Z: Float[Array, "B n d"], grid: tuple[int, int]) -> Array:
        """Unclipped pixels (B, rows*p, columns*p, 3) or logits (B, n, codes), float32."""
        features = self.features(Z, grid).astype(jnp.float32)
        if self.codes:
            return self.head(features)
        pixels = jnp.einsum("bnw,wpc->bnpc", features, self.pixel_kernel) + self.pixel_bias
        (rows, columns), p = grid, self.patch
        pixels = pixels.reshape(-1, rows, columns, p, p, 3).transpose(0, 1, 3, 2, 4, 5)
        return pixels.reshape(-1, rows * p, columns * p, 3)
