"""One step of a tiny configuration on virtual devices, as a process: loss, gradient, update, matches.

    python -m tests.train.mesh_process --output=FILE.npz --mesh=1,1 --mesh=4,2
    python -m tests.train.mesh_process --output=FILE.npz --mesh=4,2 --coordinator=127.0.0.1:PORT \
        --processes=2 --process=0

A mesh of fewer devices than there are takes the first ones. Names in the file are MESH/TENSOR.
"""

from __future__ import annotations

import argparse
import functools
import types

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from sparse_vis.interop.released import params_to_tensors
from sparse_vis.models.block import Compute, Sizes, Trunk
from sparse_vis.ops.sinkhorn import column_potentials
from sparse_vis.runtime import checksums
from sparse_vis.train.finetune import finetune_recipe
from sparse_vis.train.mesh import BATCH, global_batch, make_mesh, state_sharding
from sparse_vis.train.microbatches import global_potentials, split_batch
from sparse_vis.train.optimizer import update_teacher
from sparse_vis.train.recipe import build_recipe
from sparse_vis.train.step import compile_step, initial_state, step_key
from sparse_vis.types import Batch
from sparse_vis.views.make import make_views
from tests.step_loss import loss_fn
from tests.train.tiny_config import get_config

IMAGES, SIZE = 16, 24
SMALL = Sizes(width=16, layers=2, heads=2, mlp_dim=32)


def config():
    """The tiny configuration, which has a teacher, with a batch that 8 devices divide and a constant rate."""
    config = get_config()
    config.train.batch = IMAGES
    config.optimizer.update(schedule="constant", peak_lr=1e-3)
    return config


def local_batch() -> Batch:
    """This process's rows of the 16 images."""
    rng = np.random.default_rng(0)
    whole = Batch(
        image=rng.integers(0, 256, (IMAGES, SIZE, SIZE, 3), dtype=np.uint8),
        height=np.full(IMAGES, SIZE, np.int32), width=np.full(IMAGES, SIZE, np.int32),
        index=np.arange(IMAGES, dtype=np.uint32),
    )  # fmt: skip
    rows = IMAGES // jax.process_count()
    start = jax.process_index() * rows
    return jax.tree.map(lambda x: x[start : start + rows], whole)


@functools.cache
def start_state():
    """The state of step 0 as numpy arrays."""
    return jax.device_get(initial_state(build_recipe(config())))


def matches(recipe, mesh, state, batch):
    """The target token of each token of the image and of the masked views, in the step from this state."""
    views = make_views(step_key(config().seed, state.step), batch, recipe.views)
    teacher = update_teacher(state.teacher, state.params, recipe.momentum(state.step))
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        _, (_, _, targets) = loss_fn(state.params, recipe.model, recipe.loss, views, teacher)
    return targets.image_match, targets.masked_match


def one_step(shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """What must not depend on the mesh, from a step on one of this shape; and the program's text."""
    settings = config()
    mesh, recipe = make_mesh(shape, jax.devices()[: shape[0] * shape[1]]), build_recipe(settings)
    everywhere = NamedSharding(mesh, PartitionSpec())
    state = start_state()
    state = jax.device_put(state, state_sharding(mesh, state))
    sums = list(checksums.checksums(state.params["encoder"]).values())
    batch = global_batch(mesh, local_batch())
    step = compile_step(recipe, mesh, state)
    # In one program, the forward pass that both need is compiled once.
    seed = np.uint32(settings.seed)
    both = jax.jit(lambda state, batch: (step(state, batch, None, seed), matches(recipe, mesh, state, batch)))
    program = both.lower(state, batch).compile()
    gather = jax.jit(lambda tree: tree, out_shardings=everywhere)
    (state, metrics), found = jax.device_get(gather(jax.block_until_ready(program(state, batch))))
    # After the first step Adam's mean is (1 - b1) times the gradient, scaled by the clip.
    scale = np.maximum(1, metrics["gradient_norm"] / settings.optimizer.clip) / (1 - settings.optimizer.b1)
    mean = optax.tree_utils.tree_get(state.opt_state, "mu")
    gradients = jax.tree.map(lambda x: scale * x.astype(np.float64), mean)

    def named(kind, tree):
        return {f"{kind}/{name}": x for name, x in params_to_tensors(tree, settings.model.patch).items()}

    return {
        "checksums": np.array(sums), "step": program.as_text(),
        "image_match": found[0], "masked_match": found[1],
        **{f"metric/{name}": value for name, value in metrics.items()},
        **named("gradient", gradients), **named("params", state.params),
    }  # fmt: skip


def finetuned(shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """All parameters after a step of fine-tuning, as one vector, on two of the meshes."""
    if shape not in ((1, 1), (4, 2)):
        return {}
    settings = config()
    settings.finetune.classes = ("a", "b", "c")
    mesh, recipe = make_mesh(shape, jax.devices()[: shape[0] * shape[1]]), finetune_recipe(settings)
    state = jax.device_get(initial_state(recipe))
    state = jax.device_put(state, state_sharding(mesh, state))
    batch = local_batch()
    batch = global_batch(mesh, batch.replace(label=(batch.index % 3).astype(np.int32)))
    state, _ = compile_step(recipe, mesh, state)(state, batch, None, np.uint32(settings.seed))
    gather = jax.jit(lambda tree: tree, out_shardings=NamedSharding(mesh, PartitionSpec()))
    leaves = jax.tree.leaves(jax.device_get(gather(state.params)))
    return {"finetuned": np.concatenate([leaf.ravel() for leaf in leaves])}


@functools.cache
def small_trunk():
    """A trunk that computes in bfloat16, its parameters and its input."""
    trunk = Trunk(SMALL, Compute("bfloat16"))
    x = jax.random.normal(jax.random.key(1), (IMAGES, 9, SMALL.width), "bfloat16")
    return trunk, *jax.device_get((jax.jit(trunk.init)(jax.random.key(0), x), x))


def rounded(shape: tuple[int, int]) -> dict[str, np.ndarray]:
    """All gradients of a trunk that computes in bfloat16, as one vector; in one process."""
    if jax.process_count() > 1:
        return {}
    mesh, (trunk, params, x) = make_mesh(shape, jax.devices()[: shape[0] * shape[1]]), small_trunk()

    def loss(params, x):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return jax.numpy.sin(trunk.apply(params, x).astype("float32")).sum()

    places = state_sharding(mesh, params), NamedSharding(mesh, BATCH)
    gradient = jax.jit(jax.grad(loss), in_shardings=places)(*jax.device_put((params, x), places))
    return {"rounded": np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(gradient)])}


def small_programs() -> dict[str, str]:
    """Text of programs on 8 devices: Sinkhorn, also from microbatches, and a sort of each column."""
    mesh, recipe, params = make_mesh((4, 2)), build_recipe(config()), start_state().params
    scores = jax.ShapeDtypeStruct((64, 48), np.float32)
    images = jax.ShapeDtypeStruct((IMAGES, SIZE, SIZE, 3), np.float32)

    def text(function, x):
        return jax.jit(function, in_shardings=NamedSharding(mesh, BATCH)).lower(x).compile().as_text()

    def from_microbatches(images):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            parts = split_batch(images, 2)
            return global_potentials(
                recipe, params, parts, lambda part: types.SimpleNamespace(image=part), None
            )

    return {
        "checksum": text(checksums.of_devices, scores),
        "sinkhorn": text(lambda x: column_potentials(x, 0.06, 3), scores),
        "sorting": text(lambda x: jax.numpy.sort(x, axis=0)[0], scores),
        "microbatches": text(from_microbatches, images),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mesh", action="append", required=True, help="DATA,FSDP; may be repeated")
    parser.add_argument("--programs", action="store_true", help="add the text of some small programs")
    parser.add_argument("--output", required=True)
    parser.add_argument("--coordinator")
    parser.add_argument("--processes", type=int)
    parser.add_argument("--process", type=int)
    arguments = parser.parse_args()
    if arguments.coordinator:
        jax.distributed.initialize(arguments.coordinator, arguments.processes, arguments.process)
    found = {}
    for mesh in arguments.mesh:
        data, fsdp = map(int, mesh.split(","))
        step = one_step((data, fsdp)) | finetuned((data, fsdp)) | rounded((data, fsdp))
        found |= {f"{mesh}/{name}": value for name, value in step.items()}
    if arguments.programs:
        found |= {f"program/{name}": value for name, value in small_programs().items()}
    if jax.process_index() == 0:
        np.savez(arguments.output, **found)
    if arguments.coordinator:
        multihost_utils.sync_global_devices("done")


if __name__ == "__main__":
    main()
