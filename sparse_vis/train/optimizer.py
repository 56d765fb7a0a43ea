"""AdamW with warm-up, cosine decay and clipping, and the EMA teacher (docs/method.md sections 6 and 7)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from sparse_vis.models.stellar import teacher_params
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.names import path_name


def learning_rate(
    peak_lr: float, final_lr: float, warmup: float, schedule: str, steps: int
) -> optax.Schedule:
    """Learning rate per step.

    Args:
        peak_lr: after warm-up. final_lr: at the last step (cosine only).
        warmup: share of the steps with linear warm-up from zero (cosine only).
        schedule: "cosine" or "constant". steps: of the run.

    Raises:
        UserError: unknown schedule.
    """
    if schedule == "constant":
        return optax.constant_schedule(peak_lr)
    if schedule == "cosine":
        ramp = round(warmup * steps)
        return optax.warmup_cosine_decay_schedule(0.0 if ramp else peak_lr, peak_lr, ramp, steps, final_lr)
    raise UserError(f"config.optimizer.schedule={schedule!r} is unknown; use 'cosine' or 'constant'.")


def _trained(params):
    """True for every trained leaf: all but the decoder's Fourier matrix."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path_name(path) != "decoder/fourier", params)


def make_optimizer(
    schedule: optax.Schedule, *, weight_decay: float, b1: float, b2: float, clip: float
) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW; decay acts on biases and norms too, not on the Fourier matrix.

    Args:
        schedule: learning rate per step. weight_decay: multiplied by the learning rate, as in AdamW.
        b1, b2: decay rates of the moments. clip: maximum global gradient norm.
    """
    return optax.chain(
        optax.clip_by_global_norm(clip),
        optax.adamw(schedule, b1=b1, b2=b2, eps=1e-8, weight_decay=weight_decay, mask=_trained),
    )


def momentum_at(step: Array, steps: int, first: float, final: float) -> Float[Array, ""]:
    """The teacher's momentum at a step: constant if first == final, else a cosine from first to final.

    Args:
        step: current step, from 0. steps: of the run. first, final: momenta at its start and end.
    """
    progress = jnp.clip(step / max(steps, 1), 0.0, 1.0)
    return final - (final - first) * 0.5 * (1 + jnp.cos(jnp.pi * progress))


def update_teacher(teacher: dict, params: dict, momentum: float | Float[Array, ""]) -> dict:
    """momentum * teacher + (1 - momentum) * params, leaf by leaf."""
    return jax.tree.map(lambda t, p: momentum * t + (1 - momentum) * p, teacher, teacher_params(params))
