"""The learning curve from an evaluation of step folders."""

from __future__ import annotations

import json
import subprocess
import sys

import matplotlib.image
import pytest

from benchmarks.evidence.curve import curves
from sparse_vis.runtime.errors import UserError


def evaluation(*steps: int) -> dict:
    def measured(value, name="mean_S"):
        return {
            "knn": {"metrics": {name: {"k20": value}}},
            "linear": {"metrics": {name: {"accuracy": value + 0.1}}},
        }

    encoders = {f"runs/a/checkpoints/{step}": measured(step / 1000) for step in steps}
    return {"encoders": {"trained": measured(0.9), "pixels": measured(0.5, "mean_U"), **encoders}}


@pytest.mark.fast
def test_steps_in_order_and_the_others_apart():
    steps, others = curves(evaluation(500, 100), batch=32)
    assert list(steps) == [3200, 16000]
    assert steps[3200] == {"kNN": pytest.approx(0.1), "linear": pytest.approx(0.2)}
    assert others == {"pixels": {"kNN": 0.5, "linear": pytest.approx(0.6)}}
    with pytest.raises(UserError, match=r"1 step folders.*config\.eval\.beside"):
        curves(evaluation(100), batch=32)


@pytest.mark.fast
def test_the_command_draws_a_picture(tmp_path):
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation(100, 200, 300)))
    command = [sys.executable, "-m", "benchmarks.evidence.curve", "--batch=32"]
    good = [f"--evaluation={tmp_path}/evaluation.json", f"--output={tmp_path}/curve.png"]
    done = subprocess.run([*command, *good], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "3200 kNN 0.100 linear 0.200"
    assert matplotlib.image.imread(tmp_path / "curve.png").std() > 0.05
    bad = [f"--evaluation={tmp_path}/none.json", f"--output={tmp_path}/curve.png"]
    done = subprocess.run([*command, *bad], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and "none.json" in done.stderr
