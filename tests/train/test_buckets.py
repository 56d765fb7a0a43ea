"""A workdir in a bucket: trained, killed, continued, evaluated and loaded, by one process and by two."""

import json
import re
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from main_process import ROOT, TINY, Main
from test_resume import assert_same_run

from sparse_vis.runtime.errors import UserError

# Else a continued run waits for a minute until it takes the lock of a killed one for left over.
IMPATIENT = """
import runpy, sys
from sparse_vis.runtime import bucket_lock
bucket_lock.HEARTBEAT, bucket_lock.DEAD = 0.5, 5.0
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Impatient(Main):
    """A running main.py, or another script of the repository, with short times of the lock."""

    def __init__(self, environment: dict, log, *arguments: str, script: str = "main.py"):
        self.log = log
        command = [sys.executable, "-c", IMPATIENT, str(ROOT / script), *arguments]
        with log.open("w") as file:
            self.process = subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=ROOT
            )


@pytest.fixture(scope="module")
def trained(bucket, quick, tmp_path_factory):
    """The workdir of a run that was killed, refused to others while it ran, continued, and evaluated."""
    workdir, logs = "gs://bucket/runs/one", tmp_path_factory.mktemp("logs")
    environment = quick | bucket.variables
    start = (f"--config={TINY}", f"--workdir={workdir}")
    with Impatient(environment, logs / "first.log", *start) as run:
        run.until("step 13/")
        run.kill()
    with Impatient(environment, logs / "second.log", *start, "--config.eval.tasks=scenes") as run:
        assert run.end() == 0, run.output
    assert "waiting up to 5 s for a sign of life of the holder" in run.output
    assert "note: took over the lock of a process that was killed (training, process" in run.output
    assert f"continuing {workdir} at step " in run.output
    assert f"in {workdir}:\n  checkpoints/24 " in run.output
    return workdir


def test_a_killed_run_continues_bit_identical(trained, finished, tmp_path):
    from sparse_vis.evals.encoders import OWN
    from sparse_vis.runtime.bucket import BucketPath

    there = BucketPath(trained)
    there._call("get", trained, str(tmp_path / "copy"), recursive=True)
    assert_same_run(tmp_path / "copy", finished)
    names = {path.name for path in there.iterdir()}
    assert names == {
        "checkpoints", "config.json", "metrics.jsonl", "tensorboard",
        "evaluation.json", "evaluation.md", "localization.png",
    }  # fmt: skip
    assert json.loads((there / "evaluation.json").read_bytes())["encoders"][OWN]["scenes"]
    assert len([*(there / "tensorboard").iterdir()]) == 1
    assert not (ROOT / "gs:").exists()


def test_it_loads_as_from_a_disk(trained, finished):
    import sparse_vis

    (_, params), (_, expected) = sparse_vis.load(trained), sparse_vis.load(finished)
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_the_command_measures_saves(bucket, monkeypatch, capsys):
    from benchmarks.speed import save

    where = ["--output=gs://bucket/saves", f"--config={TINY}", "--repeats=1"]
    monkeypatch.setattr(sys, "argv", ["save", *where])
    monkeypatch.setattr(save, "__spec__", types.SimpleNamespace(name="benchmarks.speed.save"))
    save.main()
    assert re.fullmatch(
        r"a checkpoint of 0\.\d MB in \d\d files: training waits \d+\.\d\d s, complete after \d+\.\d\d s\n",
        capsys.readouterr().out,
    )
    with pytest.raises(
        UserError, match=r"^--output=gs://bucket/saves holds checkpoints; give an empty folder"
    ):
        save.main()


def test_two_processes_without_a_shared_folder_continue_it(trained, bucket, quick, tmp_path):
    """On 26 steps: each of them writes its part of the checkpoint to the bucket."""
    words = ["--processes=2", "--devices=1", "--", f"--config={TINY}", f"--workdir={trained}"]
    environment, more = quick | bucket.variables, "--config.train.steps=26"
    with Impatient(environment, tmp_path / "two.log", *words, more, script="launch/local.py") as run:
        assert run.end() == 0, run.output
    assert f"continuing {trained} at step 24" in run.output and "step 26/26" in run.output
    assert "devices: 2 x cpu of 2 processes" in run.output
