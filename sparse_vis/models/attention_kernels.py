"""The kernels of `short_attention`, forward and backward, in Pallas for GPUs."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array

from sparse_vis.models.attention import RESULT


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attention(interpret, qkv):
    """`short_attention` of one device's images."""
    return _forward(interpret, qkv)[0]


def _forward(interpret, qkv):
    batch, length, _, heads, channels = qkv.shape
    y = _call(_forward_kernel, interpret, (batch, length, heads, channels), qkv)
    return checkpoint_name(y, RESULT), qkv


def _backward(interpret, qkv, change):
    return (_call(_backward_kernel, interpret, qkv.shape, qkv, change),)


attention.defvjp(_forward, _backward)


def _call(kernel, interpret: bool, shape: tuple[int, ...], *inputs: Array) -> Array:
    """Run a kernel once per image and head, on blocks whose T and c are rounded up to powers of two."""
    batch, length, _, heads, channels = inputs[0].shape
    rows, columns = pl.next_power_of_2(max(length, 16)), pl.next_power_of_2(max(channels, 16))

    def block(shape):
        if len(shape) == 5:
            return pl.BlockSpec((None, rows, 3, None, columns), lambda image, head: (image, 0, 0, head, 0))
        return pl.BlockSpec((None, rows, None, columns), lambda image, head: (image, 0, head, 0))

    return pl.pallas_call(
        functools.partial(kernel, length, channels),
        grid=(batch, heads),
        in_specs=[block(x.shape) for x in inputs],
        out_specs=block(shape),
        out_shape=jax.ShapeDtypeStruct(shape, inputs[0].dtype),
        compiler_params=triton.CompilerParams(num_warps=4 if rows <= 64 else 8, num_stages=1),
        interpret=interpret,
    )(*inputs)


def _parts(ref, length: int, channels: int) -> tuple[tuple[Array, Array, Array], Array]:
    """q, k and v of a block, zero outside the array, and the mask of entries inside."""
    rows, _, columns = ref.shape
    row, column = (jax.lax.broadcasted_iota(jnp.int32, (rows, columns), axis) for axis in range(2))
    inside = (row < length) & (column < channels)
    mask = inside[:, None, :]
    parts = (triton.load(ref.at[:, pl.ds(part, 1), :], mask=mask, other=0.0) for part in range(3))
    return tuple(part.reshape(rows, columns) for part in parts), inside


def _weights(q: Array, k: Array, length: int, channels: int) -> Array:
    """Softmax over the first `length` keys, float32."""
    scores = triton.dot(q, k, trans_b=True) * channels**-0.5
    scores = jnp.where(jax.lax.broadcasted_iota(jnp.int32, scores.shape, 1) < length, scores, -jnp.inf)
    weights = jnp.exp(scores - scores.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def _forward_kernel(length: int, channels: int, qkv_ref, out_ref):
    (q, k, v), inside = _parts(qkv_ref, length, channels)
    y = triton.dot(_weights(q, k, length, channels).astype(v.dtype), v)
    triton.store(out_ref, y.astype(out_ref.dtype), mask=inside)


def _backward_kernel(length: int, channels: int, qkv_ref, change_ref, out_ref):
    (q, k, v), inside = _parts(qkv_ref, length, channels)
    change = triton.load(change_ref, mask=inside, other=0.0)
    weights = _weights(q, k, length, channels)
    pull = triton.dot(change, v, trans_b=True)
    pull = weights * (pull - (weights * pull).sum(axis=1, keepdims=True)) * channels**-0.5
    pull = pull.astype(q.dtype)
    pull_q, pull_k = triton.dot(pull, k), triton.dot(pull, q, trans_a=True)
    pull_v = triton.dot(weights.astype(q.dtype), change, trans_a=True)
    for part, gradient in enumerate((pull_q, pull_k, pull_v)):
        gradient = gradient.astype(out_ref.dtype)[:, None, :]
        triton.store(out_ref.at[:, pl.ds(part, 1), :], gradient, mask=inside[:, None, :])
