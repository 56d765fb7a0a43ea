"""One training step as a pure function: views, forward, targets, objective, gradient, update, metrics."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sparse_vis.models.stellar import init_params, teacher_params
from sparse_vis.train.mesh import BATCH, state_sharding
from sparse_vis.train.microbatches import accumulate
from sparse_vis.train.optimizer import update_teacher
from sparse_vis.train.recipe import Recipe
from sparse_vis.types import Batch, Views
from sparse_vis.views.make import make_views


@struct.dataclass
class TrainState:
    """All that a run carries from step to step."""

    step: jax.Array  # int32, steps taken, skipped ones included
    params: dict  # float32
    opt_state: optax.OptState
    teacher: dict | None  # EMA parameters of encoder and heads
    bad_steps: jax.Array  # int32, number of non-finite steps, which were not applied


def train_step(
    recipe: Recipe,
    state: TrainState,
    batch: Batch,
    tokenizer: dict | None = None,
    seed: int | jax.Array = 0,
    view: Callable[[Batch], Views] | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """New state and metrics; if loss or gradient norm is not finite, parameters, optimizer and teacher stay.

    `tokenizer`: its frozen parameters (None: pixel target). `view`: batch -> views (None: random views).
    """
    view = view or functools.partial(make_views, step_key(seed, state.step), spec=recipe.views)
    teacher = None
    if recipe.momentum:
        teacher = update_teacher(state.teacher, state.params, recipe.momentum(state.step))

    def loss(params, views, potentials=None):
        outputs = recipe.model.apply({"params": params}, views)
        targets = recipe.targets(recipe.model, recipe.loss, views, outputs, teacher, tokenizer, potentials)
        return recipe.objective(outputs, targets, recipe.loss)

    gradient = jax.value_and_grad(loss, has_aux=True)
    if recipe.microbatches == 1:
        (total, terms), gradients = gradient(state.params, view(batch))
    else:
        (total, terms), gradients = accumulate(gradient, recipe, state.params, batch, view, teacher)
    norm = optax.global_norm(gradients)
    updates, opt_state = recipe.optimizer.update(gradients, state.opt_state, state.params)
    good = jnp.isfinite(total) & jnp.isfinite(norm)
    params = optax.apply_updates(state.params, updates)
    moved = state.replace(params=params, opt_state=opt_state, teacher=teacher)
    # Not lax.cond: it would write all updates to memory and read them again.
    kept = jax.tree.map(functools.partial(jnp.where, good), moved, state)
    rate = recipe.schedule(steps_applied(state))
    new = kept.replace(step=state.step + 1, bad_steps=state.bad_steps + 1 - good.astype(jnp.int32))
    return new, {
        "total": total, **terms, "gradient_norm": norm, "learning_rate": rate,
        "bad_steps": new.bad_steps.astype(jnp.float32),
    }  # fmt: skip


def step_key(seed: int | jax.Array, step: int | jax.Array) -> jax.Array:
    return jax.random.fold_in(jax.random.key(seed), step)


def steps_applied(state: TrainState) -> jax.Array:
    """Number of steps applied, int32: the count of the optimizer and of its learning-rate schedule."""
    return state.step - state.bad_steps


def initial_state(recipe: Recipe, seed: int | jax.Array = 0, params: dict | None = None) -> TrainState:
    """TrainState of step 0, with the given parameters or random ones from the seed."""
    if params is None:
        params = init_params(recipe.model, jax.random.key(seed))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=recipe.optimizer.init(params),
        teacher=jax.tree.map(jnp.copy, teacher_params(params)) if recipe.momentum else None,
        bad_steps=jnp.zeros((), jnp.int32),
    )


def compile_step(recipe: Recipe, mesh: Mesh, state: TrainState):
    """The jitted step, (state, batch, tokenizer, seed) -> (state, metrics), with fixed shardings.

    The old state's memory is reused (donated). The seed is an argument, because as a constant it would make a
    sweep over seeds compile once per seed.
    """
    sharding, everywhere = state_sharding(mesh, state), NamedSharding(mesh, PartitionSpec())

    def step(*arguments):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # for the blocks' `batch_sharded`
            return train_step(recipe, *arguments)

    return jax.jit(
        step,
        in_shardings=(sharding, NamedSharding(mesh, BATCH), everywhere, everywhere),
        out_shardings=(sharding, everywhere),
        donate_argnums=0,
    )
