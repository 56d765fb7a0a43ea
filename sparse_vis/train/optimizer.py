"""AdamW with warm-up, cosine decay and clipping, and the EMA teacher (docs/method.md sections 6 and 7)."""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from sparse_vis.models.stellar import teacher_params
from sparse_vis.runtime.names import path_name


def learning_rate(
    peak_lr: float, final_lr: float, warmup: float, schedule: str, steps: int
) -> optax.Schedule:
    """Learning rate per step: constant, or linear warm-up over a share of the steps and then a cosine."""
    if schedule == "constant":
        return optax.constant_schedule(peak_lr)
    ramp = round(warmup * steps)
    return optax.warmup_cosine_decay_schedule(0.0 if ramp else peak_lr, peak_lr, ramp, steps, final_lr)


def _trained(params):
    """True for every trained leaf: all but the decoder's Fourier matrix."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path_name(path) != "decoder/fourier", params)


def make_optimizer(
    schedule: optax.Schedule, *, weight_decay: float, b1: float, b2: float, clip: float
) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW; decay acts on biases and norms too, not on the Fourier matrix."""
    return optax.chain(
        optax.clip_by_global_norm(clip),
        optax.adamw(schedule, b1=b1, b2=b2, eps=1e-8, weight_decay=weight_decay, mask=_trained),
    )


def momentum_at(step: Array, steps: int, first: float, final: float) -> Float[Array, ""]:
    """The teacher's momentum at a step of a run: a cosine from first to final, constant if they are equal."""
    progress = jnp.clip(step / max(steps, 1), 0.0, 1.0)
    return final - (final - first) * 0.5 * (1 + jnp.cos(jnp.pi * progress))


def update_teacher(teacher: dict, params: dict, momentum: float | Float[Array, ""]) -> dict:
    return jax.tree.map(lambda t, p: momentum * t + (1 - momentum) * p, teacher, teacher_params(params))
