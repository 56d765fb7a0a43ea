"""The benchmarks of growth and of input, at the smallest sizes."""

import json
import sys

import numpy as np
import pytest

from benchmarks.growth import growth, growth_arms
from benchmarks.speed import input as input_benchmark

AXES = {
    "batch": (1, 2), "tokens": (2,), "prototypes": (64,), "image": (64,), "views": (1,),
}  # fmt: skip


def start(monkeypatch, module, *arguments):
    monkeypatch.setattr(sys, "argv", [module.__name__, *arguments])
    module.main()


@pytest.fixture
def small(monkeypatch):
    """Two batch sizes, two lengths of sets, all else at one value; one layer."""
    configured = growth_arms.configured

    def shallow(*sizes):
        config = configured(*sizes)
        config.model.layers = config.model.decoder.layers = 1
        return config

    monkeypatch.setattr(growth_arms, "configured", shallow)
    base = {"batch": 1, "tokens": 2, "prototypes": 64, "image": 64, "views": 1}
    for name, value in {"AXES": AXES, "BASE": base, "LENGTHS": (16, 3), "SETS": 2}.items():
        monkeypatch.setattr(growth_arms, name, value)


def test_growth_is_measured_once_kept_and_drawn(small, monkeypatch, tmp_path, capsys):
    """Every point once per round, the least counts; what is in the file is not measured again."""
    wanted, products = growth.points(), {"stellar": 300.0, "dense": 100.0, "decoder": 50.0}
    called = []

    def measure(arm, sizes):
        slow = 5 if len(called) < len(wanted) else 1  # the first round
        called.append(arm)
        found = {"seconds": 0.002 * slow * sizes.get("batch", 1), "products": products.get(arm, 0.0)}
        return found | {"partners": [[0, 1, 1], [0, 1, 2]] * 2 if arm == "entropic" else [[0, 1, 2]] * 4}

    monkeypatch.setattr(growth, "measure", measure)
    out, picture = tmp_path / "growth.json", tmp_path / "growth.png"
    for _ in range(2):
        start(monkeypatch, growth, f"--json={out}", f"--plot={picture}")
    assert len(wanted) == 6 + 4 and len(called) == growth.ROUNDS * len(wanted)
    assert set(json.loads(out.read_text())["points"]) == set(wanted)
    shown = capsys.readouterr().out
    assert "| batch | 2 | 4.0 | 2.00 | 1.00 | 4.0 | 1.00 | 3.00 | 100% |" in shown
    assert "| 3 | 2.00 | 2.00 | 1.00 | 83.3% | 83.3% | 83.3% |" in shown  # five of six partners are the same
    assert picture.stat().st_size > 10_000


def test_the_command_measures_what_it_draws(small, monkeypatch, tmp_path, capsys):
    """Nothing stands in for anything here but the sizes, one of each."""
    monkeypatch.setitem(AXES, "batch", (1,))
    out, picture = tmp_path / "growth.json", tmp_path / "growth.png"
    start(monkeypatch, growth, f"--json={out}", f"--plot={picture}")
    points = json.loads(out.read_text())["points"].values()
    assert len(points) == 3 + 4 and all(point["seconds"] > 0 for point in points)
    assert "round 6 of 6, 7/7" in capsys.readouterr().out and picture.stat().st_size > 10_000


def test_matchings_find_the_order_of_shuffled_copies():
    """Noise is as large as the tokens, which are far apart all the same; unrelated sets follow."""
    x, y = (np.asarray(sets)[: growth_arms.SETS] for sets in growth_arms.token_sets(4))
    order = np.argmin(np.linalg.norm(x[:, :, None] - y[:, None], axis=-1), axis=-1)
    assert np.array_equal(np.sort(order, axis=-1), np.tile(np.arange(4), (growth_arms.SETS, 1)))
    for arm in (growth_arms.ARMS["entropic"], growth_arms.ARMS["exact"]):
        function, _ = arm(4)
        assert np.array_equal(function(growth_arms.jnp.asarray(x), growth_arms.jnp.asarray(y)), order)


def test_input_counts_every_form_and_split(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(input_benchmark, "SIZES", ((96, 64, 2), (640, 480, 2)))
    monkeypatch.setattr(input_benchmark, "SPLITS", ((0, 1),))
    monkeypatch.setattr(input_benchmark, "BATCHES", 1)
    out = tmp_path / "input.json"
    start(monkeypatch, input_benchmark, "--rounds=1", f"--json={out}")
    found = json.loads(out.read_text())
    small, large = found["decoding"]
    assert small["reduced_psnr"] is None and large["reduced_psnr"] > 30
    assert small["pillow_psnr"] is None and large["pillow_psnr"] is None
    assert found["pipeline"][0]["per_core"] > 0 and "the mark is 500" in capsys.readouterr().out
