"""Cross-entropy with Sinkhorn targets, and the targets of matched sets (docs/method.md section 6)."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sparse_vis.ops.prototypes import streamed_logsumexp


def prototype_cross_entropy(
    x: Float[Array, "*rows D"],
    target: Float[Array, "*rows D"],
    mass: Float[Array, "*rows 1"],
    prototypes: Float[Array, "D K"],
    temperature: float,
    chunk: int,
) -> Float[Array, ""]:
    """Mean over rows of CE(T, softmax(x W / temperature)) without a [rows, K] array.

    It equals m logsumexp(x W / temperature) - x . (T W^T) / temperature, where a row of T sums to its mass m,
    which is below one only with the published epsilon (docs/method.md section 5). `target` is T W^T, each
    row's `expected_prototype` times its mass; `chunk` prototypes are in memory at a time.
    """
    rows = x.reshape(-1, x.shape[-1])
    potentials = jnp.zeros(prototypes.shape[1], jnp.float32)
    norm = streamed_logsumexp(rows, prototypes, temperature, potentials, chunk)
    agreement = jnp.sum(rows * target.reshape(rows.shape), axis=-1) / temperature
    return jnp.mean(mass.reshape(norm.shape) * norm - agreement)


def matched_targets(targets: Float[Array, "B r D"], match: Int[Array, "B V r"]) -> Float[Array, "B V r D"]:
    """The target of each token of each view: expected prototypes (or masses, D = 1), gathered by match."""
    return jnp.take_along_axis(targets[:, None], match[..., None], axis=2)
