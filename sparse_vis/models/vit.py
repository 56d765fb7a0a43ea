"""The transformer that encoder and decoder share: pre-LN blocks, stacked and scanned."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from sparse_vis.models.gelu import gelu
from sparse_vis.models.linear import INIT_STD, dense_product, vit_init

LAYER_NORM_EPSILON = 1e-12


def batch_sharded(x: Float[Array, "B T d"]) -> Float[Array, "B T d"]:
    """x with its batch spread over all devices of the mesh in use; x itself where there is none.

    Without it, split kernels have their gradients formed from activations of other devices' images, which are
    gathered for that: five times the traffic at B/16 (docs/scaling.md).
    """
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty else jax.lax.with_sharding_constraint(x, PartitionSpec(mesh.axis_names))


def layer_norm(dtype, name: str | None = None) -> nn.LayerNorm:
    """LayerNorm with epsilon 1e-12; mean and variance are computed in float32 whatever the dtype."""
    return nn.LayerNorm(epsilon=LAYER_NORM_EPSILON, use_fast_variance=False, dtype=dtype, name=name)


def plain_attention(
    q: Float[Array, "B T h c"], k: Float[Array, "B T h c"], v: Float[Array, "B T h c"]
) -> Float[Array, "B T h c"]:
    """softmax(q k^T / sqrt(c)) v per head; scores and softmax in float32.

    Plain batched products over [B, h]: on CPU twice as fast as jax.nn.dot_product_attention, and the
    reference for its fused kernels.
    """
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    scores = jnp.matmul(q, jnp.swapaxes(k, 2, 3), preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores * q.shape[-1] ** -0.5, axis=-1).astype(v.dtype)
    return jnp.swapaxes(jnp.matmul(weights, v), 1, 2)


class Block(nn.Module):
    """Pre-LN transformer block: x + attention(norm(x)), then x + mlp(norm(x)).

    Attributes:
        width: d. heads: attention heads. mlp_dim: hidden width of the MLP.
        dtype: of the computation; parameters are float32.
        attention: "xla" (`plain_attention`), or "cudnn" for the fused kernel.
        init_std: of the kernels.
    """

    width: int
    heads: int
    mlp_dim: int
    dtype: str = "float32"
    attention: str = "xla"
    init_std: float = INIT_STD

    @nn.compact
    def __call__(self, x: Float[Array, "B T d"]) -> Float[Array, "B T d"]:
        def dense(features, name):
            return nn.Dense(
                features,
                dtype=self.dtype,
                kernel_init=vit_init(self.init_std),
                dot_general=dense_product,
                name=name,
            )

        x = batch_sharded(x)
        batch, length, _ = x.shape
        y = layer_norm(self.dtype, "norm_attention")(x)
        qkv = dense(3 * self.width, "qkv")(y).reshape(batch, length, 3, self.heads, -1)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        if self.attention == "xla":
            y = plain_attention(q, k, v)
        else:
            y = jax.nn.dot_product_attention(q, k, v, implementation=self.attention)
        x = x + dense(self.width, "attention_out")(y.reshape(batch, length, self.width))
        y = layer_norm(self.dtype, "norm_mlp")(x)
        y = gelu(dense(self.mlp_dim, "mlp_in")(y))
        return x + dense(self.width, "mlp_out")(y)


class Trunk(nn.Module):
    """`layers` blocks and a final LayerNorm; parameters of the blocks carry a leading layer axis.

    Attributes:
        layers, width, heads, mlp_dim: sizes. dtype, attention, init_std: as in Block.
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
    init_std: float = INIT_STD

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
        blocks = block(
            self.width, self.heads, self.mlp_dim, self.dtype, self.attention, self.init_std, name="blocks"
        )  # fmt: skip
        x, _ = stack(blocks, x, None)
        return layer_norm(self.dtype, "norm")(x)
