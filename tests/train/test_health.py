"""Measures of health where the answer is known, a run that collapses on purpose, and one that does not."""

import json
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sparse_vis.data.compose import ComposedSource
from sparse_vis.train.health import (
    complaints,
    effective_rank,
    localization_measures,
    prototype_measures,
    spread,
)
from sparse_vis.train.loop import Run
from tests.train.tiny_config import get_config

NAMES = {
    "S_rank", "S_rank_in_image", "S_spread", "cls_spread", "L_singular_largest", "L_singular_smallest",
    "L_entropy", "L_coverage", "prototype_usage", "prototype_entropy", "sinkhorn_error", "match_changed",
}  # fmt: skip


@pytest.mark.fast
def test_rank_and_spread():
    rank = jax.jit(effective_rank)
    rng = np.random.default_rng(0)
    flat = rng.normal(size=(50, 1)) * rng.normal(size=(1, 8)) + rng.normal(size=8)
    assert float(rank(jnp.asarray(flat, jnp.float32))) == pytest.approx(1, abs=1e-4)
    x = rng.normal(size=(3, 40, 5))
    for ours, rows in zip(rank(jnp.asarray(x, jnp.float32)), x, strict=True):
        eigenvalues = np.linalg.eigvalsh(np.cov(rows.T))
        assert float(ours) == pytest.approx(eigenvalues.sum() ** 2 / (eigenvalues**2).sum(), rel=1e-4)
    units = np.stack([[1.0, 0.0], [0.0, 1.0]])[:, None]
    np.testing.assert_allclose(spread(jnp.asarray(units)), 0.5)
    assert float(spread(jnp.ones((3, 1, 4)) / 2)[0]) == 0 and math.isnan(spread(jnp.ones((1, 1, 4)))[0])


def test_localization():
    rng = np.random.default_rng(1)
    L = rng.dirichlet(np.ones(4), size=(3, 9))
    ours = localization_measures(jnp.asarray(L, jnp.float32))
    singular = np.linalg.svd(L / 3, compute_uv=False)
    assert float(ours["L_singular_largest"]) == pytest.approx(singular[:, 0].mean(), rel=1e-4)
    assert float(ours["L_singular_smallest"]) == pytest.approx(singular[:, -1].mean(), rel=1e-3)
    assert float(ours["L_entropy"]) == pytest.approx(-(L * np.log(L)).sum(-1).mean() / np.log(4), rel=1e-5)
    assert float(ours["L_coverage"]) == np.mean([len(set(rows.argmax(-1))) / 4 for rows in L])
    hard = localization_measures(jnp.eye(4)[None, [0, 0, 2, 2]])
    assert float(hard["L_coverage"]) == 0.5 and float(hard["L_entropy"]) == 0


@pytest.mark.fast
def test_prototypes():
    scores = jnp.zeros((4, 8)).at[jnp.arange(4), jnp.array([1, 1, 5, 7])].set(1.0)
    measures = jax.jit(prototype_measures)
    ours = measures(scores)
    assert float(ours["prototype_usage"]) == 0.75
    entropy = -(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25)) / math.log(4)
    assert float(ours["prototype_entropy"]) == pytest.approx(entropy)
    assert float(measures(jnp.eye(8)[jnp.zeros(4, int)])["prototype_entropy"]) == 0


def run(tmp_path, capsys, **changes):
    """Output and rows of metrics of a short run of the tiny configuration."""
    config = get_config()
    config.data.scenes.update(train_records=64)
    config.train.update(batch=16, steps=40, log_every=10, save_every=40, health_every=10)
    config.update_from_flattened_dict(changes)
    Run(config, tmp_path / "run").train()
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    return capsys.readouterr().out, rows


def test_a_run_that_collapses_says_so(tmp_path, capsys):
    """Decay that leaves nothing of the kernels at each step, so that no rounding saves the run."""
    output, rows = run(tmp_path, capsys, **{"optimizer.weight_decay": 100.0, "optimizer.peak_lr": 1e-2})
    (alarm,) = [line for line in output.splitlines() if "collapse" in line]  # nothing is said twice
    assert alarm.startswith("warning: collapse at step 20: ") and "peak_lr" in alarm
    for meaning in ("the same prototype", "covers the whole", "the same for every image"):
        assert meaning in alarm
    measured = {name.removeprefix("health/"): value for name, value in rows[-1].items()}
    assert set(complaints(measured, tokens=4)) == {"prototype_entropy", "L_coverage", "cls_spread"}


@pytest.mark.fast
def test_every_measure_has_words_below_its_limit():
    limits = {"S_rank_in_image": 1.2, "prototype_entropy": 0.05, "cls_spread": 1e-5, "L_coverage": 0.3}
    for name, limit in limits.items():
        assert complaints({name: 1.01 * limit}, tokens=4) == {}
        assert list(complaints({name: 0.99 * limit}, tokens=4)) == [name]
    assert complaints({"prototype_entropy": 0.0}, 4) == {
        "prototype_entropy": "nearly all tokens choose the same prototype"
    }


@pytest.mark.fast
def test_one_and_two_tokens_are_not_blamed_for_what_they_cannot_help():
    alone = {"S_rank_in_image": 0.0, "L_coverage": 1.0, "prototype_entropy": 0.5, "cls_spread": 0.5}
    assert complaints(alone, tokens=1) == {}
    assert complaints(alone | {"S_rank_in_image": 0.999, "L_coverage": 0.7}, tokens=2) == {}
    assert list(complaints(alone | {"cls_spread": 0.0}, tokens=1)) == ["cls_spread"]


def test_a_healthy_run_is_silent_but_on_a_source_that_is_slower_than_its_steps(tmp_path, capsys, monkeypatch):
    read = ComposedSource.__getitem__
    monkeypatch.setattr(ComposedSource, "__getitem__", lambda self, i: time.sleep(0.01) or read(self, i))
    output, rows = run(tmp_path, capsys)
    assert output.count("note: data loading is the bottleneck: ") == 1  # a batch is read in 0.16 s
    assert all(row["input_wait_seconds"] > 0.2 for row in rows[1:])
    assert "collapse" not in output and "health/" not in output
    measured = {name.removeprefix("health/") for name in rows[-1] if name.startswith("health/")}
    assert measured == NAMES
    assert "health/match_changed" not in rows[1] and 0 <= rows[-1]["health/match_changed"] <= 1
    assert complaints({name.removeprefix("health/"): x for name, x in rows[-1].items()}, 4) == {}
    assert jax.tree.all(jax.tree.map(math.isfinite, rows))
