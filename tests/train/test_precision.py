"""bfloat16 computation trains like float32."""

import functools
import math

import jax
import numpy as np
import pytest

from sparse_vis.build import build_source
from sparse_vis.data.loader import train_batches
from sparse_vis.train.recipe import build_recipe
from sparse_vis.train.step import initial_state, train_step
from tests.train.tiny_config import get_config

STEPS, BATCH = 50, 8


@functools.cache
def batches():
    config = get_config()
    stream = train_batches(
        build_source(config, "train"), global_batch=BATCH, seed=0, start_index=0, steps=STEPS,
        canvas=config.data.canvas, min_side=6, workers=0, threads=1, on_error="stop", process_index=0,
        process_count=1,
    )  # fmt: skip
    return [batch for batch, _ in stream]


def start(recipe):
    """State of step 0, by one program."""
    return jax.jit(functools.partial(initial_state, recipe))()


def losses(dtype):
    """Total of each of the first steps on scenes; parameters and their dtypes at the end."""
    config = get_config()
    config.efficiency.dtype = dtype
    config.train.steps = STEPS
    recipe = build_recipe(config)
    step, state, totals = jax.jit(functools.partial(train_step, recipe)), start(recipe), []
    for batch in batches():
        state, metrics = step(state, batch)
        totals.append(float(metrics["total"]))
    return np.array(totals), state


def test_bfloat16_losses_stay_within_three_percent_of_float32s():
    single, state = losses("float32")
    half, half_state = losses("bfloat16")
    assert {x.dtype.name for x in jax.tree.leaves(half_state.params)} == {"float32"}
    assert np.isfinite(half).all() and int(half_state.bad_steps) == 0
    assert half[-1] == pytest.approx(single[-1], rel=0.03) and half[-1] != single[-1]
    assert single[-5:].mean() < 0.9 * single[:5].mean()  # it has learnt something in between
    assert all(math.isfinite(float(x.sum())) for x in jax.tree.leaves(state.params))
