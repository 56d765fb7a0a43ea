"""The EMA teacher: encoder with queries, and both heads (docs/method.md section 6)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sparse_vis.models.stellar import teacher_params


def momentum_at(step: Array, steps: int, first: float, final: float) -> Float[Array, ""]:
    """Momentum of a step: constant where first == final, else a cosine from first to final.

    Args:
        step: current step, from 0. steps: of the run. first, final: momenta at its ends.
    """
    progress = jnp.clip(step / max(steps, 1), 0.0, 1.0)
    return final - (final - first) * 0.5 * (1 + jnp.cos(jnp.pi * progress))


def update_teacher(teacher: dict, params: dict, momentum: float | Float[Array, ""]) -> dict:
    """momentum * teacher + (1 - momentum) * params, leaf by leaf."""
    return jax.tree.map(lambda t, p: momentum * t + (1 - momentum) * p, teacher, teacher_params(params))
