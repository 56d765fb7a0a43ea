"""Sinkhorn-Knopp over the global batch, kept as one potential per prototype.

The published loop alternates column and row normalisation of exp(scores / temperature), rows last
(docs/method.md section 5). Its result is therefore softmax(scores / temperature + g) along the rows, with
one number g per column: K floats describe the assignments of any number of rows.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from ott.geometry import geometry
from ott.problems.linear import linear_problem
from ott.solvers.linear import sinkhorn

Scores = Float[Array, "rows K"]


def run_ott(cost: Float[Array, "n m"], epsilon: float, iterations: int, a: Array, b: Array):
    """Result of exactly `iterations` log-domain iterations of ott-jax's Sinkhorn, each columns before rows.

    Args:
        epsilon: entropic regularisation, in units of the cost, as are the potentials f and g of the result.
        a, b: marginals of the rows (n,) and the columns (m,).
    """
    # With the default inner_iterations=10, ott-jax would run no iteration at all for fewer than 10.
    rounds = dict(min_iterations=iterations, max_iterations=iterations, inner_iterations=1)
    given = geometry.Geometry(cost_matrix=cost, epsilon=epsilon)
    return sinkhorn.Sinkhorn(**rounds, threshold=0.0)(linear_problem.LinearProblem(given, a=a, b=b))


def column_potentials(scores: Scores, temperature: float, iterations: int) -> Float[Array, " K"]:
    """Column potentials g with assignments = softmax(scores / temperature + g), no gradient.

    DEVIATION: the published code adds 1e-8 to row and column sums, which shrinks rows that are far below
    every column's maximum (`published_potentials`). Here, in the log domain, every row sums to one.

    Args:
        scores: prototype logits of every row of the global batch.
        temperature: published 0.06. iterations: rounds of [columns, rows], published 3.
    """
    scores = jax.lax.stop_gradient(scores.astype(jnp.float32))
    rows, columns = scores.shape
    masses = (jnp.full(n, 1 / n, jnp.float32) for n in (rows, columns))
    out = run_ott(-scores, temperature, iterations, *masses)
    return out.g / temperature


def published_potentials(
    scores: Scores, temperature: float, iterations: int, epsilon: float
) -> Float[Array, "rounds K"]:
    """Column potentials after each iteration of the published loop, without gradient.

    The loop adds epsilon (1e-8) to each sum by which it divides, after scaling columns so that their largest
    entry is exp(50). Its assignments are row_mass * softmax(scores / temperature + g[-1]). Arguments are as
    in `column_potentials`.
    """
    logits = jax.lax.stop_gradient(scores.astype(jnp.float32)) / temperature
    f, g = jnp.zeros(logits.shape[0], jnp.float32), 50 - jnp.max(logits, axis=0)
    rounds = []
    for _ in range(iterations):
        g -= jnp.logaddexp(g + jax.nn.logsumexp(logits + f[:, None], axis=0), math.log(epsilon))
        f -= jnp.logaddexp(f + jax.nn.logsumexp(logits + g, axis=1), math.log(epsilon))
        rounds.append(g)
    return jnp.stack(rounds)


def row_mass(log_sums: Float[Array, "rounds rows"], epsilon: float) -> Float[Array, " rows"]:
    """Row sums of the published assignments, s / (s + epsilon) with s the sum before the last division.

    `log_sums`: logsumexp(scores / temperature + g) for the potentials g of each round.
    """
    f, mass = jnp.zeros_like(log_sums[0]), jnp.ones_like(log_sums[0])
    for log_sum in log_sums:
        divisor = jnp.logaddexp(f + log_sum, math.log(epsilon))
        mass = jnp.exp(f + log_sum - divisor)
        f -= divisor
    return mass


def assignments(
    scores: Float[Array, "*rows K"], potentials: Float[Array, " K"], temperature: float
) -> Float[Array, "*rows K"]:
    """Rows of the Sinkhorn-Knopp assignment as a full matrix: softmax(scores / temperature + g)."""
    return jax.nn.softmax(scores.astype(jnp.float32) / temperature + potentials, axis=-1)


def column_error(scores: Scores, potentials: Float[Array, " K"], temperature: float) -> Float[Array, ""]:
    """How far the assignments are from equal use of the prototypes: total variation distance, from 0 to 1."""
    mass = jnp.mean(assignments(scores, potentials, temperature), axis=0)
    return 0.5 * jnp.sum(jnp.abs(mass - 1 / mass.size))
