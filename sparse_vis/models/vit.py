"""The transformer that encoder and decoder share: pre-LN blocks, stacked and scanned."""

from __future__ import annotations

import jax
from flax import linen as nn
from jaxtyping import Array, Float

from sparse_vis.models.linear import VIT_INIT

LAYER_NORM_EPSILON = 1e-12


def layer_norm(dtype, name: str | None = None) -> nn.LayerNorm:
    """LayerNorm with epsilon 1e-12; mean and variance are computed in float32 whatever the dtype."""
    return nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, use_fast_variance=False, dtype=dtype, name=name)


class Block(nn.Module):
    """Pre-LN transformer block: x + attention(norm(x)), then x + mlp(norm(x)).

    Attributes:
        width: d. heads: attention heads. mlp_dim: hidden width of the MLP.
        dtype: of the computation; parameters are float32.
        attention: implementation for jax.nn.dot_product_attention, "xla" or "cudnn".
    """

    width: int
    heads: int
    mlp_dim: int
    dtype: str = "float32"
    attention: str = "xla"

    @nn.compact
    def __call__(self, x: Float[Array, "B T d"]) -> Float[Array, "B T d"]:
        def dense(features, name):
            return nn.Dense(features, dtype=self.dtype, kernel_init=VIT_INIT, name=name)

        batch, length, _ = x.shape
        y = layer_norm(self.dtype, "norm_attention")(x)
        qkv = dense(3 * self.width, "qkv")(y).reshape(batch, length, 3, self.heads, -1)
        y = jax.nn.dot_product_attention(
            qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], implementation=self.attention
        )
        x = x + dense(self.width, "attention_out")(y.reshape(batch, length, self.width))
        y = layer_norm(self.dtype, "norm_mlp")(x)
        y = jax.nn.gelu(dense(self.mlp_dim, "mlp_in")(y), approximate=False)
        return x + dense(self.width, "mlp_out")(y)


class Trunk(nn.Module):
    """`layers` blocks and a final LayerNorm; parameters of the blocks carry a leading layer axis.

    Attributes:
        layers, width, heads, mlp_dim: sizes. dtype, attention: as in Block.
        remat: recompute each block's activations in the backward pass.
        unroll: how many layers of the scan are laid out one after the other.
    """

    layers: int
    width: int
    heads: int
    mlp_dim: int
    dtype: str = "float32"
    attention: str = "xla"
    remat: bool = False
    unroll: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "B T d"]) -> Float[Array, "B T d"]:
        block = nn.remat(Block, prevent_cse=False) if self.remat else Block
        stack = nn.scan(
            lambda module, carry, _: (module(carry), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.layers,
            unroll=self.unroll,
        )
        blocks = block(self.width, self.heads, self.mlp_dim, self.dtype, self.attention, name="blocks")
        x, _ = stack(blocks, x, None)
        return layer_norm(self.dtype, "norm")(x)
