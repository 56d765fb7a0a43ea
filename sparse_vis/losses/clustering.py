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

    Equals m logsumexp(x W / temperature) - x . (T W^T) / temperature where rows of T sum to m
    (docs/method.md section 5).

    Args:
        x: (..., D) student embeddings, float32.
        target: (..., D), T W^T: the prototype that each row's target expects (`expected_prototype`).
        mass: (..., 1), m: one, but for rows that the published epsilon shrinks.
        prototypes: (D, K), W. temperature: the student's (published: 0.12).
        chunk: prototypes held in memory at a time.

    Returns:
        Scalar float32, in nats.
    """
    rows = x.reshape(-1, x.shape[-1])
    potentials = jnp.zeros(prototypes.shape[1], jnp.float32)
    norm = streamed_logsumexp(rows, prototypes, temperature, potentials, chunk)
    agreement = jnp.sum(rows * target.reshape(rows.shape), axis=-1) / temperature
    return jnp.mean(mass.reshape(norm.shape) * norm - agreement)


def matched_targets(targets: Float[Array, "B r D"], match: Int[Array, "B V r"]) -> Float[Array, "B V r D"]:
    """The target of every token of every view, gathered through the matches.

    Args:
        targets: (B, r, D) expected prototypes of the r target tokens of an image.
        match: (B, V, r) int32 index of the target token of each view's token.

    Returns:
        (B, V, r, D).
    """
    return jnp.take_along_axis(targets[:, None], match[..., None], axis=2)
