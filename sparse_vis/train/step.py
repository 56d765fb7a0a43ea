"""One training step as a pure function: views, forward, targets, objective, gradient, update, metrics."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sparse_vis.models.stellar import init_params, teacher_params
from sparse_vis.train.gradients import loss_and_gradients
from sparse_vis.train.mesh import BATCH, state_sharding
from sparse_vis.train.optimizer import momentum_at, update_teacher
from sparse_vis.train.recipe import Recipe
from sparse_vis.types import Batch, Views
from sparse_vis.views.make import make_views


@struct.dataclass
class TrainState:
    """All that a run carries from step to step.

    Attributes:
        step: int32, steps taken, skipped ones included.
        params: float32 parameter tree. opt_state: state of the optax optimizer. teacher: EMA parameters of
            encoder and heads, or None.
        bad_steps: int32, number of non-finite steps, which were not applied.
    """

    step: jax.Array
    params: dict
    opt_state: optax.OptState
    teacher: dict | None
    bad_steps: jax.Array


def steps_applied(state: TrainState) -> jax.Array:
    """Number of steps applied, int32: the count of the optimizer and of its learning-rate schedule."""
    return state.step - state.bad_steps


def initial_state(recipe: Recipe, params: dict | None = None) -> TrainState:
    """TrainState of step 0, with the given parameters or random ones from the recipe's seed."""
    if params is None:
        params = init_params(recipe.model, jax.random.key(recipe.seed))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=recipe.optimizer.init(params),
        teacher=jax.tree.map(jnp.copy, teacher_params(params)) if recipe.use_teacher else None,
        bad_steps=jnp.zeros((), jnp.int32),
    )


def train_step(
    recipe: Recipe,
    state: TrainState,
    batch: Batch,
    tokenizer: dict | None = None,
    view: Callable[[Batch], Views] | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One training step; if loss or gradient norm is not finite, parameters, optimizer and teacher stay.

    Args:
        recipe: static settings. state: TrainState. batch: the global batch.
        tokenizer: frozen parameters of the VQ tokenizer; None for the pixel target.
        view: Batch -> Views; None draws random views from the recipe's seed and the step.

    Returns:
        (new state, metrics): unweighted terms, `total`, `gradient_norm`, `learning_rate`,
        `bad_steps`; float32 scalars.
    """
    if view is None:
        key = jax.random.fold_in(jax.random.key(recipe.seed), state.step)
        view = functools.partial(make_views, key, spec=recipe.views)
    teacher = None
    if recipe.use_teacher:
        momentum = momentum_at(state.step, recipe.steps, recipe.momentum, recipe.final_momentum)
        teacher = update_teacher(state.teacher, state.params, momentum)
    total, terms, gradients = loss_and_gradients(
        state.params, recipe.model, recipe.loss, batch, view, teacher, tokenizer, recipe.microbatches
    )
    norm = optax.global_norm(gradients)
    updates, opt_state = recipe.optimizer.update(gradients, state.opt_state, state.params)
    good = jnp.isfinite(total) & jnp.isfinite(norm)
    moved = state.replace(
        params=optax.apply_updates(state.params, updates), opt_state=opt_state, teacher=teacher
    )
    # Not lax.cond: it would write all updates to memory and read them again.
    kept = jax.tree.map(functools.partial(jnp.where, good), moved, state)
    rate = recipe.schedule(steps_applied(state))
    new = kept.replace(step=state.step + 1, bad_steps=state.bad_steps + 1 - good.astype(jnp.int32))
    return new, {
        "total": total, **terms, "gradient_norm": norm, "learning_rate": rate,
        "bad_steps": new.bad_steps.astype(jnp.float32),
    }  # fmt: skip


def compile_step(recipe: Recipe, mesh: Mesh, state: TrainState):
    """The jitted step, (state, batch, tokenizer, seed) -> (state, metrics), with fixed shardings.

    The old state's memory is reused (donated). The seed is an argument, because as a constant it would make a
    sweep over seeds compile once per seed.
    """
    sharding, everywhere = state_sharding(mesh, state), NamedSharding(mesh, PartitionSpec())

    def step(state: TrainState, batch, tokenizer, seed):
        seeded = dataclasses.replace(recipe, seed=seed)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # for the blocks' `batch_sharded`
            return train_step(seeded, state, batch, tokenizer)

    return jax.jit(
        step,
        in_shardings=(sharding, NamedSharding(mesh, BATCH), everywhere, everywhere),
        out_shardings=(sharding, everywhere),
        donate_argnums=0,
    )
