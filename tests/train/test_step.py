"""The training step: exact microbatches, skipped bad steps, terms of weight zero, the EMA, a golden step."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sparse_vis.models.stellar import teacher_params
from sparse_vis.train.optimizer import momentum_at, update_teacher
from sparse_vis.train.recipe import build_recipe
from sparse_vis.train.step import initial_state, train_step
from sparse_vis.types import Batch
from sparse_vis.views.make import make_views
from tests.train.tiny_config import get_config

COUNT = 8
GOLDEN_STEP = pathlib.Path(__file__).with_name("golden_step.json")


@functools.cache
def recipe(teacher, **loss):
    config = get_config()
    config.teacher.enabled = teacher
    config.loss.update(loss)
    return build_recipe(config)


@functools.cache
def start_of(teacher):
    """State of step 0, which takes a second, as its operations run one by one."""
    return initial_state(recipe(teacher))


def start(r):
    """It depends on the loss no more than the parameters do."""
    return start_of(r.momentum is not None)


@functools.cache
def step_of(r):
    return jax.jit(functools.partial(train_step, r))


@functools.cache
def batch():
    rng = np.random.default_rng(0)
    size = 24
    return Batch(
        image=jnp.asarray(rng.integers(0, 256, (COUNT, size, size, 3), dtype=np.uint8)),
        height=jnp.full(COUNT, size, jnp.int32), width=jnp.full(COUNT, size, jnp.int32),
        index=jnp.arange(COUNT, dtype=jnp.uint32),
    )  # fmt: skip


@functools.cache
def views():
    """Of the whole batch, so that the programs below need not compile them."""
    return jax.jit(make_views, static_argnums=2)(jax.random.key(1), batch(), recipe(False).views)


@functools.cache
def gradient_program(r, microbatches, count=COUNT):
    """Total, terms and gradients by the step itself: an optimizer that keeps the gradients as its state."""
    kept = dataclasses.replace(r, microbatches=microbatches, optimizer=optax.trace(decay=0.0))

    def run(state, images, views):
        state = state.replace(opt_state=kept.optimizer.init(state.params))
        new, metrics = train_step(
            kept, state, images, view=lambda part: jax.tree.map(lambda x: x[part.index], views)
        )
        terms = {name: x for name, x in metrics.items() if name in vars(r.loss)}
        return metrics["total"], terms, new.opt_state.trace

    images = jax.tree.map(lambda x: x[:count], batch())
    return jax.jit(run).lower(start(r), images, views()).compile()


def gradients(r, microbatches):
    return gradient_program(r, microbatches)(start(r), batch(), views())


def relative(a, b):
    """L2 distance of two gradients, relative to the second's norm."""
    a, b = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]).astype(np.float64) for tree in (a, b)
    )
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize(("teacher", "parts"), [(False, 2), (False, 4), (False, 8), (True, 2)])
def test_microbatches_give_the_single_pass(teacher, parts):
    r = recipe(teacher)
    total, terms, whole = gradients(r, 1)
    again, again_terms, accumulated = gradients(r, parts)
    np.testing.assert_allclose(again, total, rtol=1e-6)
    for name in terms:
        np.testing.assert_allclose(again_terms[name], terms[name], rtol=1e-5, err_msg=name)
    assert relative(accumulated, whole) < 1e-6


def test_microbatches_save_memory():
    """By XLA's account of the compiled programs: what is not parameters shrinks with every halving."""
    bytes_of = [gradient_program(recipe(False), m).memory_analysis().temp_size_in_bytes for m in (1, 2, 4, 8)]
    assert all(after < before for before, after in itertools.pairwise(bytes_of)), bytes_of
    assert bytes_of[-1] < 0.5 * bytes_of[0], bytes_of


def test_the_published_accumulation_balances_each_part_alone():
    """It is the mean over the parts, each as a batch of its own, and not the whole batch's loss."""
    r, half = recipe(False, balance_over="microbatch"), gradient_program(recipe(False), 1, COUNT // 2)
    total, _, accumulated = gradients(r, 2)
    halves = [jax.tree.map(lambda x, i=i: x[i::2], batch()) for i in range(2)]
    parts = [half(start(r), images, views()) for images in halves]
    np.testing.assert_allclose(total, (parts[0][0] + parts[1][0]) / 2, rtol=1e-6)
    assert relative(accumulated, jax.tree.map(lambda a, b: (a + b) / 2, parts[0][2], parts[1][2])) < 1e-6
    assert abs(float(total - gradients(recipe(False), 1)[0])) > 1e-4


@pytest.mark.fast
def test_the_step_fits_on_one_screen():
    assert len(inspect.getsource(train_step).splitlines()) <= 40


def test_a_bad_step_is_counted_and_not_applied():
    r = recipe(teacher=True)
    poisoned = start(r)
    broken = jax.tree.map(lambda x: x, poisoned.params)
    broken["cls_head"]["prototypes"] = broken["cls_head"]["prototypes"].at[0, 0].set(jnp.nan)
    state = poisoned.replace(params=broken)
    new, metrics = step_of(r)(state, batch())
    assert not np.isfinite(metrics["total"])
    assert int(new.bad_steps) == 1 and int(new.step) == 1
    same = jax.tree.map(lambda a, b: np.array_equal(a, b, equal_nan=True), new.params, state.params)
    assert all(jax.tree.leaves(same))
    for before, after in zip(jax.tree.leaves(state.opt_state), jax.tree.leaves(new.opt_state), strict=True):
        assert np.array_equal(before, after)
    # The next good step is optax's first, and the rate that is reported is the one that it applies.
    _, metrics = step_of(r)(new.replace(params=poisoned.params), batch())
    counts = [int(count) for _, count in optax.tree_utils.tree_get_all_with_path(new.opt_state, "count")]
    assert set(counts) == {0} and metrics["learning_rate"] == r.schedule(0) != r.schedule(1)


def test_every_parameter_but_the_fourier_matrix_moves():
    r = recipe(teacher=True)
    state = start(r)
    new, _ = step_of(r)(state, batch())
    new, _ = step_of(r)(new, batch())  # the first step may have rate zero
    for path, moved in jax.tree_util.tree_leaves_with_path(
        jax.tree.map(lambda a, b: not np.array_equal(a, b), new.params, state.params)
    ):
        assert moved == ("fourier" not in jax.tree_util.keystr(path)), jax.tree_util.keystr(path)


def test_terms_of_weight_zero_cost_nothing():
    """Without CLS terms the program is as small as one that has no local views to begin with."""

    @functools.cache
    def flops(local_count, **weights):
        config = get_config()
        config.teacher.enabled = False
        config.views.local_count = local_count
        config.loss.update(weights)
        r = build_recipe(config)
        abstract = jax.eval_shape(functools.partial(initial_state, r))
        return jax.jit(functools.partial(train_step, r)).lower(abstract, batch()).cost_analysis()["flops"]

    off = dict(cls_clustering=0.0, cls_masked=0.0, cls_local=0.0)
    assert flops(1, **off) == pytest.approx(flops(0, **off), rel=1e-3)
    assert flops(1) > 1.05 * flops(1, **off)


@pytest.mark.fast
def test_teacher_momentum():
    assert float(momentum_at(jnp.array(7), 10, 0.9, 0.9)) == pytest.approx(0.9)
    ends = [float(momentum_at(jnp.array(step), 10, 0.9, 1.0)) for step in (0, 5, 10)]
    assert ends == pytest.approx([0.9, 0.95, 1.0])
    params = {name: {"w": jnp.ones(2)} for name in ("encoder", "sparse_head", "cls_head", "decoder")}
    teacher = jax.tree.map(jnp.zeros_like, teacher_params(params))
    new = update_teacher(teacher, params, jnp.array(0.75))
    assert set(new) == {"encoder", "sparse_head", "cls_head"}
    np.testing.assert_allclose(new["encoder"]["w"], 0.25)


def test_the_step_draws_from_seed_and_index_alone():
    """The same images in another order, at other places of the batch, give the same loss."""
    r = recipe(teacher=True)
    order = jnp.array(np.random.default_rng(2).permutation(COUNT))
    state = start(r)
    step = step_of(r)
    _, before = step(state, batch())
    _, after = step(state, jax.tree.map(lambda x: x[order], batch()))
    np.testing.assert_allclose(after["total"], before["total"], rtol=1e-6)
    elsewhere = batch().replace(index=batch().index + 100)
    _, other = step(state, elsewhere)
    assert abs(float(other["total"]) - float(before["total"])) > 1e-3


def test_golden_step():
    """Two steps of the smallest configuration give the recorded numbers; views, data and seeds included."""
    r = recipe(teacher=True)
    state, metrics = step_of(r)(start(r), batch())
    state, metrics = step_of(r)(state, batch())
    ours = {name: float(value) for name, value in metrics.items()}
    if os.environ.get("UPDATE_GOLDEN_STEP"):
        GOLDEN_STEP.write_text(json.dumps(ours, indent=1) + "\n")
    recorded = json.loads(GOLDEN_STEP.read_text())
    assert ours == pytest.approx(recorded, rel=1e-4), (
        "the training step gives other numbers than before; if that is meant, say why in the commit and run "
        "UPDATE_GOLDEN_STEP=1 python -m pytest tests/train/test_step.py -k golden_step"
    )


def test_with_64_bit_types_switched_on_the_step_stays_in_32_bits():
    """JAX_ENABLE_X64 changes JAX's default types: every array of ours names its own."""
    r = recipe(teacher=True)
    with jax.enable_x64(True):
        step = jax.jit(functools.partial(train_step, r))
        state, metrics = step(initial_state(r), batch())
        state, metrics = step(state, batch())
    assert {x.dtype.itemsize for x in jax.tree.leaves((state, metrics))} == {4}
    ours = {name: float(value) for name, value in metrics.items()}
    assert ours == pytest.approx(json.loads(GOLDEN_STEP.read_text()), rel=1e-4)
