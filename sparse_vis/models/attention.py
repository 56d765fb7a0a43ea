"""Attention as plain products, and by kernels of jax.nn; our own kernel is in short_attention.py."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def plain_attention(
    q: Float[Array, "B Q h c"], k: Float[Array, "B T h c"], v: Float[Array, "B T h c"]
) -> Float[Array, "B Q h c"]:
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
    length: int,
    implementation: str = "cudnn",
) -> Float[Array, "B T h c"]:
    """`plain_attention` of the first `length` tokens in one kernel that never writes the scores to memory.

    Args:
        q, k, v: bfloat16 or float16; cuDNN has no way back for odd T. length: of T; what tokens from there on
            get has no meaning. implementation: of jax.nn.dot_product_attention.
    """
    lengths = jnp.full(q.shape[0], length, jnp.int32) if length < q.shape[1] else None
    return jax.nn.dot_product_attention(
        q, k, v, query_seq_lengths=lengths, key_value_seq_lengths=lengths, implementation=implementation
    )
