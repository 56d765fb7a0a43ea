"""Settings that make any command of main.py small: a tiny model, one step, a few small images."""

from __future__ import annotations

import functools

import jax
import numpy as np
from ml_collections import ConfigDict

from sparse_vis.config import settings
from sparse_vis.config.contradictions import TERMS
from sparse_vis.train.recipe import build_recipe
from sparse_vis.train.step import initial_state, train_step
from sparse_vis.types import Batch
from tests.tiny_checkpoint import tiny_config
from tests.train.tiny_config import get_config as tiny_recipe

# The model of tiny_checkpoint, whatever the configuration; one step of 16 small images. Without a GPU,
# and without what only takes long: processes for data, health, a teacher.
SMALL = {f"model.{name}": value for name, value in settings.leaves(tiny_config().model).items()}
for own in ("target", "init_std", "tokenizer.path", "tokenizer.dtype", "tokenizer.codes"):
    del SMALL[f"model.{own}"]
SMALL |= {
    "views.global_count": 2, "views.local_count": 0, "views.local_size": 16, "data.canvas": 32,
    "data.scenes.size": 32, "data.pictures.size": 32, "data.workers": 0, "data.threads": 1,
    "model.spatial_temperature": 0.06, "teacher.enabled": False, "train.batch": 16, "train.steps": 1,
    "train.log_every": 1, "train.save_every": 1, "train.health_every": 0,
    "eval.train_records": 40, "eval.test_records": 20, "eval.batch": 20,
    "efficiency.dtype": "float32", "efficiency.attention": "xla",
}  # fmt: skip

# Unless a command says otherwise, it evaluates nothing after training: others do, and .ci/run. Nor does it
# train by its own recipe, whose step tests/test_configs.py traces, but with one term of the loss: one step is
# compiled for all commands; tests/train/ has the others.
UNLESS_GIVEN = {"eval.tasks": "()", "efficiency.microbatches": 1, "efficiency.unroll": 1} | {
    f"{section}.{name}": value
    for section in ("loss", "views", "teacher", "optimizer")
    for name, value in settings.leaves(tiny_recipe()[section]).items()
    if f"{section}.{name}" not in SMALL
}
UNLESS_GIVEN |= {f"loss.{term}": 0.0 for term in TERMS if term != "reconstruction"}


def config() -> ConfigDict:
    """The configuration whose step most commands train."""
    config = tiny_config()
    config.update_from_flattened_dict(SMALL | UNLESS_GIVEN | {"eval.tasks": ()})
    return config


def trace_step() -> None:
    """Trace it once, which makes JAX trace it in half the time from then on; no device is started."""
    small = config()
    recipe, images, side = build_recipe(small), small.train.batch, small.data.canvas
    number = jax.ShapeDtypeStruct((images,), np.int32)
    batch = Batch(
        image=jax.ShapeDtypeStruct((images, side, side, 3), np.uint8), height=number, width=number,
        index=jax.ShapeDtypeStruct((images,), np.uint32),
    )  # fmt: skip
    state = jax.eval_shape(functools.partial(initial_state, recipe))
    jax.eval_shape(functools.partial(train_step, recipe), state, batch)
