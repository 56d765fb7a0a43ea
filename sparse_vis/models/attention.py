"""Attention by plain matrix products or by fused kernels of jax.nn; our own is in short_attention.py."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def plain_attention(
    q: Float[Array, "B Q h c"], k: Float[Array, "B T h c"], v: Float[Array, "B T h c"]
) -> Float[Array, "B Q h c"]:
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


def fused_attention(
    q: Float[Array, "B T h c"],
    k: Float[Array, "B T h c"],
    v: Float[Array, "B T h c"],
    length: int,
    implementation: str = "cudnn",
) -> Float[Array, "B T h c"]:
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
