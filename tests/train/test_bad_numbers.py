"""Numbers that go bad: steps that are not applied, and the end of a run that does not recover."""

import json
import math
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from main_process import TINY
from test_resume import metrics

from sparse_vis.train.loop import bad_terms


def read(folder):
    with ocp.StandardCheckpointer() as reader:
        return {item: reader.restore((folder / item).resolve()) for item in ("params", "rest")}


def poison(workdir):
    """Put one NaN into the decoder of the only checkpoint that is left."""
    (newest,) = (folder for folder in (workdir / "checkpoints").iterdir() if folder.name == "18")
    shutil.rmtree(workdir / "checkpoints" / "24")
    params = jax.tree.map(np.array, read(newest)["params"])
    params["decoder"]["proj"]["bias"][0] = math.nan
    shutil.rmtree(newest / "params")
    with ocp.StandardCheckpointer() as writer:
        writer.save((newest / "params").resolve(), params)
    # Without its checksums, which would not let it pass.
    data = newest / "data" / "metadata"
    data.write_text(json.dumps({"next_index": json.loads(data.read_text())["next_index"]}))
    return newest


def test_bad_steps_are_not_applied_and_stop_the_run(main, finished, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    before = read(poison(workdir))
    settings = ("--config.train.max_bad_steps=5", "--config.train.save_every=2")
    with main(f"--config={TINY}", f"--workdir={workdir}", *settings) as run:
        assert run.end() == 1, run.output
    error = run.output.splitlines()[-1]
    assert error.startswith(
        "error: stopped at step 23: reconstruction not finite in 5 steps in a row, from step 19 on"
    )
    assert "with the first step after the restart" in error and ", its parameters" in error
    assert "peak_lr" not in error
    assert "Traceback" not in run.output
    assert "warning: 1 updates skipped, first step 19: reconstruction not finite" in run.output
    after = read(workdir / "checkpoints" / "22")
    counters = {name: after["rest"].pop(name) - before["rest"].pop(name) for name in ("step", "bad_steps")}
    assert counters == {"step": 4, "bad_steps": 4}
    jax.tree.map(np.testing.assert_array_equal, after, before)
    rows = metrics(workdir)
    assert [row["bad_steps"] for row in rows if row["step"] > 18] == [1, 2, 3, 4]
    assert all("reconstruction" not in row and "total" not in row for row in rows if row["step"] > 18)
    assert json.loads((workdir / "config.json").read_text())["train"]["max_bad_steps"] == 5


@pytest.mark.fast
def test_the_term_that_explains_the_total_is_named():
    good = {"cls_local": 1.0, "gradient_norm": 2.0, "koleo_image": 3.0, "total": 4.0}
    assert bad_terms(good) == ""
    assert bad_terms({**good, "koleo_image": math.inf, "total": math.inf}) == "koleo_image"
    assert bad_terms({**good, "gradient_norm": math.nan}) == "gradient_norm"
    assert bad_terms({**good, "total": math.nan, "gradient_norm": math.nan}) == "gradient_norm, total"
