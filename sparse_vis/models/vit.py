"""The transformer that encoder and decoder share: pre-LN blocks, stacked and scanned."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from sparse_vis.models.gelu import gelu
from sparse_vis.models.linear import INIT_STD, dense_product, vit_init
from sparse_vis.models.norm import LayerNorm

PRODUCT = "product"  # names what `remat="products"` keeps


def batch_sharded(x: Float[Array, "B T d"]) -> Float[Array, "B T d"]:
    """x with its batch spread over all devices of the mesh in use; x itself where there is none.

    Without it, split kernels have their gradients formed from activations of other devices' images, which are
    gathered for that: five times the traffic at B/16 (docs/scaling.md).
    """
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty else jax.lax.with_sharding_constraint(x, PartitionSpec(mesh.axis_names))


def plain_attention(
    q: Float[Array, "B T h c"], k: Float[Array, "B T h c"], v: Float[Array, "B T h c"]
) -> Float[Array, "B T h c"]:
    """softmax(q k^T / sqrt(c)) v per head; scores, exponentials and their sums in float32.

    Plain batched products over [B, h]: on CPU twice as fast as jax.nn.dot_product_attention, and the
    reference for its fused kernels. The sums divide the c numbers that leave a row, not its T weights.
    """
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    scores = jnp.matmul(q, jnp.swapaxes(k, 2, 3), preferred_element_type=jnp.float32)
    scores *= q.shape[-1] ** -0.5
    # Any shift gives the same weights; this one keeps the exponentials from overflowing.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    y = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return jnp.swapaxes((y / weights.sum(axis=-1, keepdims=True)).astype(v.dtype), 1, 2)


def fused_attention(
    q: Float[Array, "B T h c"],
    k: Float[Array, "B T h c"],
    v: Float[Array, "B T h c"],
    implementation: str = "cudnn",
) -> Float[Array, "B T h c"]:
    """`plain_attention` in one kernel that never writes the scores to memory.

    cuDNN has no way back for odd T: there one token is added that no other sees, and taken off again.

    Args:
        q, k, v: bfloat16 or float16. implementation: of jax.nn.dot_product_attention.
    """
    batch, length = q.shape[:2]
    if length % 2 == 0:
        return jax.nn.dot_product_attention(q, k, v, implementation=implementation)
    q, k, v = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (q, k, v))
    lengths = jnp.full(batch, length, jnp.int32)
    return jax.nn.dot_product_attention(
        q, k, v, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation=implementation
    )[:, :length]  # fmt: skip


class Block(nn.Module):
    """Pre-LN transformer block: x + attention(norm(x)), then x + mlp(norm(x)).

    Attributes:
        width: d. heads: attention heads. mlp_dim: hidden width of the MLP.
        dtype: of the computation; parameters are float32.
        attention: "xla" (`plain_attention`), or "cudnn" (`fused_attention`).
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
        def dense(features, name, x):
            layer = nn.Dense(
                features,
                dtype=self.dtype,
                kernel_init=vit_init(self.init_std),
                dot_general=dense_product,
                name=name,
            )
            return checkpoint_name(layer(x), PRODUCT)

        x = batch_sharded(x)
        batch, length, _ = x.shape
        y = LayerNorm(name="norm_attention")(x)
        # Split, because its gradient is one concatenation; that of three slices pads and adds.
        q, k, v = (
            part.reshape(batch, length, self.heads, -1)
            for part in jnp.split(dense(3 * self.width, "qkv", y), 3, axis=-1)
        )
        attention = plain_attention if self.attention == "xla" else fused_attention
        y = attention(q, k, v).reshape(batch, length, self.width)
        x = x + dense(self.width, "attention_out", y)
        y = LayerNorm(name="norm_mlp")(x)
        y = gelu(dense(self.mlp_dim, "mlp_in", y))
        return x + dense(self.width, "mlp_out", y)


class Trunk(nn.Module):
    """`layers` blocks and a final LayerNorm; parameters of the blocks carry a leading layer axis.

    Attributes:
        layers, width, heads, mlp_dim: sizes. dtype, attention, init_std: as in Block.
        remat: what of a block is computed again in the backward pass: "none", all but its "products" with
            kernels, or all of its "blocks".
        unroll: how many layers of the scan are laid out one after the other.
    """

    layers: int
    width: int
    heads: int
    mlp_dim: int
    dtype: str = "float32"
    attention: str = "xla"
    remat: str = "none"
    unroll: int = 1
    init_std: float = INIT_STD

    @nn.compact
    def __call__(self, x: Float[Array, "B T d"]) -> Float[Array, "B T d"]:
        block = Block
        if self.remat != "none":
            kept = (PRODUCT,) if self.remat == "products" else ()
            policy = jax.checkpoint_policies.save_only_these_names(*kept)
            block = nn.remat(Block, prevent_cse=False, policy=policy)
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
        return LayerNorm(name="norm")(x)
