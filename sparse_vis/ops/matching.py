"""Matching of two token sets: the published entropic plan, and an exact one-to-one assignment."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from sparse_vis.ops.sinkhorn import run_ott

TokenSets = Float[Array, "N r d"]


def pairwise_distance(x: Float[Array, "r d"], y: Float[Array, "r d"]) -> Float[Array, "r r"]:
    """Euclidean distances between the rows of x and of y, float32.

    Computed from differences: the expansion |x|^2 - 2xy + |y|^2 loses the digits that decide between nearly
    equal tokens.
    """
    difference = x[:, None, :].astype(jnp.float32) - y[None, :, :].astype(jnp.float32)
    return jnp.sqrt(jnp.sum(difference**2, axis=-1))


def entropic_plan(
    x: Float[Array, "r d"], y: Float[Array, "r d"], epsilon: float, iterations: int
) -> Float[Array, "r r"]:
    """Entropic transport plan from the rows of x to the rows of y, unit marginals (docs/method.md section 6).

    Each of the `iterations` (published: 5) normalises rows, then columns, in the log domain, so that columns
    sum to one exactly and rows nearly. `epsilon` is in units of distance (published: 0.1).
    """
    ones = jnp.ones(x.shape[0], jnp.float32)
    # ott-jax updates columns first; the published loop rows first. Hence the transposed problem.
    return run_ott(pairwise_distance(x, y).T, epsilon, iterations, ones, ones).matrix.T


def entropic_match(x: TokenSets, y: TokenSets, epsilon: float, iterations: int) -> Int[Array, "N r"]:
    """For each token of x, the token of y that receives most of its mass; several may share one."""
    plans = jax.vmap(lambda a, b: entropic_plan(a, b, epsilon, iterations))(x, y)
    return jnp.argmax(plans, axis=-1).astype(jnp.int32)


def exact_match(x: TokenSets, y: TokenSets) -> Int[Array, "N r"]:
    """For each token of x, its partner in the one-to-one assignment of least total distance."""

    def one(a, b):
        rows, columns = optax.assignment.hungarian_algorithm(pairwise_distance(a, b))
        return jnp.zeros(a.shape[0], jnp.int32).at[rows].set(columns.astype(jnp.int32))

    return jax.vmap(one)(x, y)
