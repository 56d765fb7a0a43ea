"""Sums over prototypes, streamed in chunks so that no [rows, K] array stays in memory.

The cross-entropy between targets T (rows sum to one) and softmax(x W / t) is
logsumexp(x W / t) - x . (T W^T) / t. Both parts are sums over K prototypes; each chunk is
computed again on the way back instead of being stored.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def _chunks(count: int, chunk: int) -> int:
    return count // chunk if chunk and count > chunk and count % chunk == 0 else 1


def _split(prototypes: Array, parts: int) -> Array:
    """(D, K) -> (parts, D, K / parts)."""
    return prototypes.reshape(prototypes.shape[0], parts, -1).transpose(1, 0, 2)


def _recomputed(body: Callable, parts: int) -> Callable:
    """The chunks are computed again on the way back; where all prototypes are one chunk, it is kept."""
    return jax.checkpoint(body) if parts > 1 else body


def _streamed_sum(
    x: Array, prototypes: Array, temperature: float, potentials: Array, chunk: int
) -> tuple[Array, Array]:
    """Largest exponent m of each row and sum_k exp(x . w_k / temperature + g_k - m); m has no gradient.

    Not as one logarithm that grows from chunk to chunk: with exponents near 40 each of its roundings would
    show in the sixth digit of the gradients.
    """
    parts = _chunks(prototypes.shape[1], chunk)

    def body(carry, part):
        (largest, total), (w, g) = carry, part
        exponents = x @ w / temperature + g
        new = jax.lax.stop_gradient(jnp.maximum(largest, jnp.max(exponents, axis=-1)))
        total = total * jnp.exp(largest - new) + jnp.sum(jnp.exp(exponents - new[:, None]), axis=-1)
        return (new, total), None

    start = (jnp.full(x.shape[:1], -jnp.inf, x.dtype), jnp.zeros(x.shape[:1], x.dtype))
    return jax.lax.scan(
        _recomputed(body, parts), start, (_split(prototypes, parts), potentials.reshape(parts, -1))
    )[0]


def streamed_logsumexp(
    x: Float[Array, "rows D"],
    prototypes: Float[Array, "D K"],
    temperature: float,
    potentials: Float[Array, " K"],
    chunk: int,
) -> Float[Array, " rows"]:
    """log sum_k exp(x . w_k / temperature + g_k) for every row, differentiable in x and prototypes.

    Args:
        x: (rows, D) float32 embeddings. prototypes: (D, K) float32.
        temperature: divisor of the logits. potentials: (K,) added to the scaled logits.
        chunk: prototypes held at a time; 0, or one that does not divide K, means all at once.

    Returns:
        (rows,) float32.
    """
    largest, total = _streamed_sum(x, prototypes, temperature, potentials, chunk)
    return largest + jnp.log(total)


def expected_prototype(
    x: Float[Array, "rows D"],
    prototypes: Float[Array, "D K"],
    temperature: float,
    potentials: Float[Array, " K"],
    values: Float[Array, "D K"],
    chunk: int,
) -> Float[Array, "rows D"]:
    """sum_k T_k values_k with T = softmax(x W / temperature + g): where each row's target points.

    Differentiable in `values` alone; the assignments T are targets and carry no gradient.

    Args:
        x: (rows, D) float32 embeddings that give the targets. prototypes: (D, K) that scored them.
        temperature: Sinkhorn temperature. potentials: (K,) Sinkhorn column potentials.
        values: (D, K) prototypes that the student uses. chunk: as in `streamed_logsumexp`.

    Returns:
        (rows, D) float32.
    """
    x, prototypes, potentials = jax.lax.stop_gradient((x, prototypes, potentials))
    largest, total = _streamed_sum(x, prototypes, temperature, potentials, chunk)
    parts = _chunks(prototypes.shape[1], chunk)

    def body(expected, part):
        w, g, v = part
        return expected + jnp.exp(x @ w / temperature + g - largest[:, None]) @ v.T, None

    scanned = (_split(prototypes, parts), potentials.reshape(parts, -1), _split(values, parts))
    return jax.lax.scan(_recomputed(body, parts), jnp.zeros_like(x), scanned)[0] / total[:, None]
