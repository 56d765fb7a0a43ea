"""A tiny model and checkpoints of it, written without training."""

from __future__ import annotations

import functools
import pathlib

import jax
import numpy as np
from ml_collections import ConfigDict

from sparse_vis.config.defaults import default_config
from sparse_vis.train import checkpoint
from sparse_vis.train.mesh import make_mesh, state_sharding
from sparse_vis.train.recipe import build_recipe
from sparse_vis.train.step import initial_state

SIZE, PATCH, WIDTH, TOKENS = 32, 8, 32, 4


def tiny_config() -> ConfigDict:
    config = default_config()
    config.model.update(
        image_size=SIZE, patch=PATCH, width=WIDTH, layers=2, heads=2, mlp_dim=64, tokens=TOKENS
    )
    config.model.decoder.update(width=16, layers=1, heads=2, mlp_dim=32)
    config.model.prototypes.update(count=16, dim=8, hidden=16)
    config.train.update(batch=8, steps=20)
    return config


def write_checkpoints(
    workdir: pathlib.Path,
    seeds: dict[int, int],
    mesh: tuple[int, int] = (-1, 1),
    config: ConfigDict | None = None,
) -> None:
    """Saves one checkpoint per step, its parameters drawn from the step's seed, spread over `mesh`."""
    config = config or tiny_config()
    # Shapes alone: compiling the initialisation would take longer than all that is tested with it.
    abstract = jax.eval_shape(functools.partial(initial_state, build_recipe(config)))
    sharding = state_sharding(make_mesh(mesh), abstract)
    manager = checkpoint.open_manager(workdir, keep=len(seeds))
    for step, seed in seeds.items():
        draw = np.random.default_rng(seed).normal
        state = jax.tree.map(lambda x, draw=draw: draw(0, 0.2, x.shape).astype(x.dtype), abstract)
        state = jax.device_put(state.replace(step=np.int32(step)), sharding)
        checkpoint.save(manager, state, {"next_index": step * config.train.batch}, config)
    manager.wait_until_finished()
    manager.close()
