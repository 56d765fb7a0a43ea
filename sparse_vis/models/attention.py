"""Attention in three ways: plain matrix products, fused kernels of jax.nn, our kernel for short sequences."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

Heads = Float[Array, "B T h c"]
LONGEST = 128  # most tokens that `short_attention` takes: a program holds all their scores in float32
RESULT = "short attention"  # name of its output, by which `remat="products"` knows what to save


def plain_attention(q: Float[Array, "B Q h c"], k: Heads, v: Heads) -> Float[Array, "B Q h c"]:
    """softmax(q k^T / sqrt(c)) v per head; scores, exponentials and their sums in float32.

    Plain batched products over [B, h]: on CPU twice as fast as jax.nn.dot_product_attention, and the
    reference for its fused kernels. The softmax's denominator divides each row's output (c numbers) instead
    of its weights (T numbers).
    """
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
    scores = jnp.matmul(q, jnp.swapaxes(k, 2, 3), preferred_element_type=jnp.float32)
    scores *= q.shape[-1] ** -0.5
    # Any shift gives the same weights; the maximum keeps the exponentials from overflowing.
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    y = jnp.matmul(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    return jnp.swapaxes((y / weights.sum(axis=-1, keepdims=True)).astype(v.dtype), 1, 2)


def fused_attention(q: Heads, k: Heads, v: Heads, length: int, implementation: str = "cudnn") -> Heads:
    """`plain_attention` over the first `length` tokens, by one kernel that never writes scores to memory.

    Args:
        q, k, v: bfloat16 or float16; cuDNN has no backward pass for odd T.
        length: number of valid tokens, at most T; the outputs of the others are meaningless.
        implementation: as in jax.nn.dot_product_attention.
    """
    lengths = jnp.full(q.shape[0], length, jnp.int32) if length < q.shape[1] else None
    return jax.nn.dot_product_attention(
        q, k, v, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation=implementation
    )


def short_attention(qkv: Float[Array, "B T 3 h c"], interpret: bool = False) -> Heads:
    """`plain_attention` by a GPU kernel: one program per image and head holds all scores in registers.

    cuDNN's kernel is made for long sequences: for the 53 and 56 tokens of local and masked views its backward
    pass takes several times as long as reading and writing the arrays. This kernel reads q, k and v side by
    side, as the QKV projection writes them, and writes their gradients in the same layout.

    Args:
        qkv: bfloat16 or float16, T at most LONGEST; B may be sharded over the current mesh.
        interpret: run the kernels without a GPU, slowly.
    """
    from sparse_vis.models.attention_kernels import attention  # imports Pallas, which nothing else needs

    mesh = jax.sharding.get_abstract_mesh()
    attention = functools.partial(attention, interpret)
    if mesh.empty:
        return attention(qkv)
    batch = PartitionSpec(mesh.axis_names)  # XLA cannot see that the kernel treats images independently
    return jax.shard_map(attention, in_specs=batch, out_specs=batch, check_vma=False)(qkv)
