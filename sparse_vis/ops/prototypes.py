"""Sums over prototypes, streamed in chunks so that no [rows, K] array stays in memory.

The cross-entropy between targets T (rows sum to one) and softmax(x W / t) is
logsumexp(x W / t) - x . (T W^T) / t. Both parts are sums over K prototypes; the backward pass recomputes
each chunk instead of storing it.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def _chunks(count: int, chunk: int) -> int:
    return count // chunk if chunk and count > chunk and count % chunk == 0 else 1


def _cut(x: Array, index: Array, chunks: int) -> Array:
    size = x.shape[-1] // chunks
    return jax.lax.dynamic_slice_in_dim(x, index * size, size, axis=-1)


def _put(into: Array, index: Array, chunk: Array) -> Array:
    return jax.lax.dynamic_update_slice_in_dim(into, chunk, index * chunk.shape[-1], axis=-1)


def _exponents(
    x: Array, prototypes: Array, temperature: float, potentials: Array, index: Array, chunks: int
) -> Array:
    """x . w_k / temperature + g_k for the prototypes of one chunk."""
    return x @ _cut(prototypes, index, chunks) / temperature + _cut(potentials, index, chunks)


def _streamed_sums(
    x: Array, prototypes: Array, temperature: float, potentials: Array, values: Array | None, chunks: int
) -> tuple[Array, Array, Array | None]:
    """Row-wise sums over all prototypes, with exponents e_k = x . w_k / temperature + g_k.

    Returns m = max_k e_k, sum_k exp(e_k - m) and, with values, sum_k exp(e_k - m) values_k. The maximum and
    the sum are kept apart, because a running logarithm would be rounded in every chunk, and with exponents
    near 40 this shows in the sixth digit of the gradients.
    """

    def add(index, sums):
        largest, total, weighted = sums
        exponents = _exponents(x, prototypes, temperature, potentials, index, chunks)
        new = jnp.maximum(largest, jnp.max(exponents, axis=-1))
        weights, shrink = jnp.exp(exponents - new[:, None]), jnp.exp(largest - new)
        if values is not None:
            weighted = weighted * shrink[:, None] + weights @ _cut(values, index, chunks).T
        return new, total * shrink + jnp.sum(weights, axis=-1), weighted

    start = (jnp.full(len(x), -jnp.inf, x.dtype), jnp.zeros(len(x), x.dtype))
    weighted = None if values is None else jnp.zeros((len(x), len(values)), x.dtype)
    return jax.lax.fori_loop(0, chunks, add, (*start, weighted))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 4))
def streamed_logsumexp(
    x: Float[Array, "rows D"],
    prototypes: Float[Array, "D K"],
    temperature: float,
    potentials: Float[Array, " K"],
    chunk: int,
) -> Float[Array, " rows"]:
    """log sum_k exp(x . w_k / temperature + g_k) for every row, differentiable in x and prototypes.

    Reverse mode only; potentials belong to targets and get no gradient. `chunk` prototypes are in memory at a
    time: all of them if it is 0 or does not divide K.
    """
    return _logsumexp_forward(x, prototypes, temperature, potentials, chunk)[0]


def _logsumexp_forward(x, prototypes, temperature, potentials, chunk):
    chunks = _chunks(prototypes.shape[1], chunk)
    largest, total, _ = _streamed_sums(x, prototypes, temperature, potentials, None, chunks)
    return largest + jnp.log(total), (x, prototypes, potentials, largest, total)


def _logsumexp_backward(temperature, chunk, kept, change):
    x, prototypes, potentials, largest, total = kept
    chunks = _chunks(prototypes.shape[1], chunk)
    scale = change / total / temperature

    def add(index, gradients):
        of_x, of_prototypes = gradients
        exponents = _exponents(x, prototypes, temperature, potentials, index, chunks)
        pull = scale[:, None] * jnp.exp(exponents - largest[:, None])
        of_x += pull @ _cut(prototypes, index, chunks).T
        return of_x, _put(of_prototypes, index, x.T @ pull)

    start = (jnp.zeros_like(x), jnp.zeros_like(prototypes))
    return *jax.lax.fori_loop(0, chunks, add, start), None


streamed_logsumexp.defvjp(_logsumexp_forward, _logsumexp_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 5))
def expected_prototype(
    x: Float[Array, "rows D"],
    prototypes: Float[Array, "D K"],
    temperature: float,
    potentials: Float[Array, " K"],
    values: Float[Array, "D K"],
    chunk: int,
) -> Float[Array, "rows D"]:
    """Expected prototype of each row, sum_k T_k values_k with T = softmax(x W / temperature + g).

    Differentiable, in reverse mode, only in `values`, the student's prototypes, as the assignments T are
    targets. Temperature and potentials are those of Sinkhorn; `chunk` is as in `streamed_logsumexp`.
    """
    return _expected_forward(x, prototypes, temperature, potentials, values, chunk)[0]


def _expected_forward(x, prototypes, temperature, potentials, values, chunk):
    chunks = _chunks(prototypes.shape[1], chunk)
    largest, total, weighted = _streamed_sums(x, prototypes, temperature, potentials, values, chunks)
    return weighted / total[:, None], (x, prototypes, potentials, values, largest, total)


def _expected_backward(temperature, chunk, kept, change):
    x, prototypes, potentials, values, largest, total = kept
    chunks = _chunks(prototypes.shape[1], chunk)
    pull = (change / total[:, None]).T

    def add(index, of_values):
        exponents = _exponents(x, prototypes, temperature, potentials, index, chunks)
        return _put(of_values, index, pull @ jnp.exp(exponents - largest[:, None]))

    return None, None, None, jax.lax.fori_loop(0, chunks, add, jnp.zeros_like(values))


expected_prototype.defvjp(_expected_forward, _expected_backward)
