"""The PyTorch peer computes what we compute: otherwise its time would say nothing."""

from __future__ import annotations

import functools
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch

from benchmarks.peer.peer_model import Peer, Step, torch_views, transplant
from benchmarks.speed.synthetic import random_batch, random_state, recipe_of
from sparse_vis.train.step import train_step
from sparse_vis.views.make import make_views
from tests.documents import ROOT
from tests.main_process import WAIT, environment
from tests.train.tiny_config import get_config


@pytest.fixture(scope="module")
def case():
    """Our model and the peer with the same weights, and the same views."""
    config = get_config()
    config.teacher.enabled = False
    config.model.update(layers=2)
    config.model.decoder.layers = 2
    config.optimizer.update(schedule="constant", peak_lr=1e-3)
    recipe = recipe_of(config)
    views = jax.jit(functools.partial(make_views, spec=recipe.views))(jax.random.key(3), random_batch(config))
    state = random_state(recipe)
    peer = Peer(config)
    transplant(state.params, peer)
    return config, recipe, state, views, peer


def test_features_are_the_same(case):
    _, recipe, state, views, peer = case

    def encode(model, x):
        tokens = model.encode(x)
        factors = model.factorize(tokens)
        return tokens.cls[:, 0], tokens.S, tokens.U, factors.L, factors.Z

    ours = jax.jit(lambda p, x: recipe.model.apply({"params": p}, x, method=encode))(
        state.params, views.image
    )
    with torch.inference_mode():
        theirs = peer.encode(torch_views(views)[0])
    for a, b in zip(ours, theirs, strict=True):
        assert np.abs(a - 0).max() > 0
        np.testing.assert_allclose(b.numpy(), a, rtol=1e-4, atol=1e-5)


def test_losses_gradients_and_updates_are_the_same(case):
    """Totals and gradient norms of three steps: the second and third see what AdamW did before."""
    config, recipe, state, views, peer = case
    step = Step(peer, recipe.loss, config.optimizer, compile=False)
    ours = jax.jit(lambda s, v: train_step(recipe, s, v, view=lambda v: v))
    totals = []
    for _ in range(3):
        state, metrics = ours(state, views)
        total, norm = step(*torch_views(views))
        np.testing.assert_allclose(total.item(), metrics["total"], rtol=1e-5)
        np.testing.assert_allclose(norm.item(), metrics["gradient_norm"], rtol=1e-3)
        totals.append(total.item())
    assert totals[2] < totals[0]


def test_the_command_prints_ratios_of_one_run(tmp_path):
    out = tmp_path / "peer.json"
    words = (
        "-m", "benchmarks.peer.peer", "--config=tests/train/tiny_config.py", "--compile=False", "--repeats=2",
        "--encode_images=2", f"--json={out}",
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, timeout=WAIT, cwd=ROOT,
        env=environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    last = json.loads(done.stdout.splitlines()[-1])
    names = {f"{what}_{number}" for what in ("products", "encode", "step") for number in ("ratio", "spread")}
    assert set(last) == names and all(last[name] > 0 for name in names if name.endswith("ratio"))
    assert json.loads(out.read_text())["step"]["ratio"] == last["step_ratio"]
