"""The frozen MaskGIT-VQGAN: images to grids of codes and back (docs/method.md section 4).

Architecture: Chang et al., MaskGIT (arXiv 2202.04200). sparse_vis.interop.maskgit reads the weights.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from sparse_vis.ops.resize import resize_bicubic
from sparse_vis.runtime.errors import UserError

GROUPS = 32


def _conv(features: int, size: int, dtype: DTypeLike, name: str, use_bias: bool = True) -> nn.Conv:
    # Codes are argmins: TF32 or bf16 products within float32 convolutions would change some of them.
    precision = jax.lax.Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else None
    return nn.Conv(features, (size, size), use_bias=use_bias, dtype=dtype, precision=precision, name=name)


def _norm_silu(x: jax.Array, dtype: DTypeLike, name: str) -> jax.Array:
    # The fast variance E[x^2] - E[x]^2 needs one pass instead of two, but loses digits: for bfloat16 less
    # than its own rounding, but in float32 it would change codes. Flax computes statistics in float32 always.
    fast = jnp.dtype(dtype) != jnp.float32
    norm = nn.GroupNorm(num_groups=GROUPS, epsilon=1e-6, dtype=dtype, use_fast_variance=fast, name=name)
    return nn.silu(norm(x))


class ResBlock(nn.Module):
    """Two pre-activated 3x3 convolutions and a residual connection."""

    channels: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B h w c"]) -> Float[Array, "B h w channels"]:
        out = x
        for i in (1, 2):
            out = _norm_silu(out, self.dtype, f"norm{i}")
            out = _conv(self.channels, 3, self.dtype, f"conv{i}", use_bias=False)(out)
        if x.shape[-1] == self.channels:
            return x + out
        # As in the released network, the shortcut acts on the block's output, not on its input.
        return out + _conv(self.channels, 1, self.dtype, "nin_shortcut", use_bias=False)(out)


class VQEncoder(nn.Module):
    """Pixels to latents at 1 / 2^(levels - 1) of the resolution; attributes as in VQGAN."""

    hidden_channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: int
    z_channels: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B H W 3"]) -> Float[Array, "B h w z"]:
        x = _conv(self.hidden_channels, 3, self.dtype, "conv_in", use_bias=False)(x)
        for level, mult in enumerate(self.channel_mult):
            for block in range(self.num_res_blocks):
                x = ResBlock(self.hidden_channels * mult, self.dtype, name=f"down_{level}_block_{block}")(x)
            if level < len(self.channel_mult) - 1:
                x = nn.avg_pool(x, (2, 2), strides=(2, 2))
        for block in range(self.num_res_blocks):
            x = ResBlock(x.shape[-1], self.dtype, name=f"mid_{block}")(x)
        return _conv(self.z_channels, 1, self.dtype, "conv_out")(_norm_silu(x, self.dtype, "norm_out"))


class VQDecoder(nn.Module):
    """Codebook vectors to pixels, unclipped; attributes as in VQGAN."""

    hidden_channels: int
    channel_mult: tuple[int, ...]
    num_res_blocks: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "B h w z"]) -> Float[Array, "B H W 3"]:
        x = _conv(self.hidden_channels * self.channel_mult[-1], 3, self.dtype, "conv_in")(x)
        for block in range(self.num_res_blocks):
            x = ResBlock(x.shape[-1], self.dtype, name=f"mid_{block}")(x)
        for level, mult in reversed(list(enumerate(self.channel_mult))):
            channels = self.hidden_channels * mult
            for block in range(self.num_res_blocks):
                x = ResBlock(channels, self.dtype, name=f"up_{level}_block_{block}")(x)
            if level > 0:
                x = x.repeat(2, axis=1).repeat(2, axis=2)
                x = _conv(channels, 3, self.dtype, f"up_{level}_upsample_conv")(x)
        return _conv(3, 3, self.dtype, "conv_out")(_norm_silu(x, self.dtype, "norm_out"))


class VQGAN(nn.Module):
    """Tokenizer with the methods encode, codes, decode: `vqgan.apply({"params": p}, x, method="encode")`."""

    hidden_channels: int  # at full resolution, a multiple of 32; released: 128
    channel_mult: tuple[int, ...]  # channels of each level / hidden_channels, finest first: (1, 1, 2, 2, 4)
    num_res_blocks: int  # per level and in the middle; released: 2
    z_channels: int  # width of the codebook vectors; released: 256
    num_embeddings: int  # number of codebook vectors; released: 1024
    dtype: DTypeLike = jnp.float32  # of convolutions; norm statistics and the code search stay float32

    def setup(self):
        if self.hidden_channels % GROUPS:
            raise UserError(f"VQGAN: hidden_channels is {self.hidden_channels}; use a multiple of {GROUPS}.")
        sizes = (self.hidden_channels, self.channel_mult, self.num_res_blocks)
        self.encoder = VQEncoder(*sizes, self.z_channels, self.dtype)
        self.decoder = VQDecoder(*sizes, self.dtype)
        self.codebook = self.param(
            "codebook", nn.initializers.normal(1.0, jnp.float32), (self.num_embeddings, self.z_channels)
        )

    @property
    def stride(self) -> int:
        """Side of one code in pixels."""
        return 2 ** (len(self.channel_mult) - 1)

    def encode(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B h w z"]:
        """Latents of images in [0, 1], float32, h = H // stride. Raises UserError below one code's size."""
        height, width = pixels.shape[1:3]
        if min(height, width) < self.stride:
            least = f"{self.stride}x{self.stride}"
            raise UserError(f"the tokenizer got images of {height}x{width}; give at least {least} pixels.")
        return self.encoder(pixels).astype(jnp.float32)

    def codes(self, latent: Float[Array, "B h w z"]) -> Int[Array, "B n"]:
        """Index of the codebook vector nearest to each latent, row-major: argmin_k |e_k|^2 - 2 z.e_k."""
        z = latent.astype(jnp.float32).reshape(latent.shape[0], -1, self.z_channels)
        products = jnp.einsum("bnz,kz->bnk", z, self.codebook, precision=jax.lax.Precision.HIGHEST)
        # |z|^2 is the same for all k, and adding it would only cost digits.
        return jnp.argmin(jnp.sum(self.codebook**2, axis=-1) - 2 * products, axis=-1).astype(jnp.int32)

    def codes_on(self, pixels: Float[Array, "B H W 3"], grid: tuple[int, int]) -> Int[Array, "B n"]:
        """Codes of images on a grid (rows, columns); images of another size are resized first."""
        size = (grid[0] * self.stride, grid[1] * self.stride)
        if pixels.shape[1:3] != size:
            pixels = resize_bicubic(pixels, size)
        return self.codes(self.encode(pixels))

    def decode(self, codes: Int[Array, "B h w"]) -> Float[Array, "B H W 3"]:
        """Images from codes, float32, clipped to [0, 1]."""
        pixels = self.decoder(jnp.take(self.codebook, codes, axis=0))
        return jnp.clip(pixels.astype(jnp.float32), 0.0, 1.0)

    def __call__(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B H W 3"]:
        """Images after a round trip through the codes."""
        latent = self.encode(pixels)
        return self.decode(self.codes(latent).reshape(latent.shape[:3]))
