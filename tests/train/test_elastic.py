"""Runs of two processes with two devices each: the same as of one, stopped, killed and continued."""

import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from main_process import ROOT, TINY, Main
from test_resume import metrics

from sparse_vis.config import settings

LAST = 24
# The two processes compile the same program, but on CPU JAX's cache tells them apart by their topology.
SHARED_CACHE = """
import sys
if any(argument.endswith("main.py") for argument in sys.orig_argv):
    from jax._src import cache_key
    cache_key._hash_accelerator_config = lambda *_: None
"""


class Launcher(Main):
    """A running launch/local.py with two processes; leaving the context kills them all."""

    def __init__(self, environment: dict, workdir: pathlib.Path, *arguments: str):
        self.log = workdir.with_suffix(".log")
        command = [ROOT / "launch" / "local.py", "--processes=2", "--devices=2", "--"]
        command += [f"--config={TINY}", f"--workdir={workdir}", *arguments]
        with self.log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, command)], stdout=file, stderr=subprocess.STDOUT, env=environment
            )

    def __exit__(self, *_) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            time.sleep(2.5)
            self.process.terminate()  # so late, the second SIGTERM kills the processes
        self.process.wait()

    def signal_second(self, number: int) -> None:
        """A signal to the second process alone."""
        second = next(
            pid for pid in self.children() if b",2,1\0" in pathlib.Path(f"/proc/{pid}/cmdline").read_bytes()
        )
        subprocess.run(["kill", f"-{number}", str(second)], check=True)


@pytest.fixture(scope="module")
def shared(quick, tmp_path_factory):
    """Environment of processes that share what they compile."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "sitecustomize.py").write_text(SHARED_CACHE)
    # (With GLIBC_TUNABLES there, main.py need not start itself a second time.)
    return {
        **quick,
        "PYTHONPATH": f"{folder}:{quick['PYTHONPATH']}",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    }


def copy_until(source, target, step):
    """A workdir as it was when it had saved this step."""
    shutil.copytree(source, target)
    for folder in (target / "checkpoints").iterdir():
        if int(folder.name) > step:
            shutil.rmtree(folder)
    lines = (source / "metrics.jsonl").read_text().splitlines(keepends=True)
    (target / "metrics.jsonl").write_text("".join(lines[:step]))


def steps(workdir):
    return sorted(int(folder.name) for folder in (workdir / "checkpoints").iterdir())


def state(workdir, step=LAST):
    """Every array of a checkpoint in host memory, whatever devices wrote it, and the data position."""
    folder, arrays = (workdir / "checkpoints" / str(step)).resolve(), {}
    for item in ("params", "rest"):
        reader = ocp.PyTreeCheckpointer()
        tree = reader.metadata(folder / item).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        arrays[item] = reader.restore(folder / item, restore_args=as_numpy)
    position = json.loads((folder / "data" / "metadata").read_text())
    position["checksums"].pop("config")  # in which the number of workers may differ
    return arrays, position


def assert_close(workdir, expected, first=1):
    """Equal but for the order of float32 sums, which the number of devices changes."""
    rows, expected_rows = metrics(workdir), metrics(expected)
    assert [row["step"] for row in rows] == list(range(1, LAST + 1))
    # Another batch would show: from one to the next the total changes by about 5 %.
    for row, expected_row in zip(rows[first - 1 :], expected_rows[first - 1 :], strict=True):
        np.testing.assert_allclose(
            row["total"], expected_row["total"], rtol=1e-5, err_msg=f"step {row['step']}"
        )
    (found, position), (wanted, expected_position) = state(workdir), state(expected)
    assert position["next_index"] == expected_position["next_index"]
    difference, size = 0.0, 0.0
    for (path, a), b in zip(
        jax.tree.leaves_with_path(found["params"]), jax.tree.leaves(wanted["params"]), strict=True
    ):
        if jax.tree_util.keystr(path).endswith("['qkv']['bias']"):
            # Key biases have no gradient, so that Adam makes steps of rounding errors.
            a, b = (np.delete(x.reshape(len(x), 3, -1), 1, axis=1) for x in (a, b))
        difference += np.sum(np.square(a - b), dtype=np.float64)
        size += np.sum(np.square(b), dtype=np.float64)
    assert size > 0 and np.sqrt(difference / size) < 1e-5


def test_two_processes_train_as_one_and_one_killed_ends_the_run_which_continues(shared, finished, tmp_path):
    pair = tmp_path / "pair"
    with Launcher(shared, pair, "--config.train.keep=4") as run:
        assert run.end() == 0, run.output
    assert run.output.count("compiling the step") == 1 and run.output.count(f"step {LAST}/{LAST}") == 1
    assert steps(pair) == [6, 12, 18, 24]
    saved, expected = (settings.plain(settings.read(folder)) for folder in (pair, finished))
    assert saved["train"].pop("keep") == 4 and expected["train"].pop("keep") and saved == expected
    assert_close(pair, finished)

    workdir = tmp_path / "run"
    copy_until(pair, workdir, 6)
    with Launcher(shared, workdir, "--config.train.keep=1", "--config.data.workers=1") as run:
        run.until((workdir / "checkpoints" / "12").is_dir)
        run.signal_second(signal.SIGKILL)
        began = time.monotonic()
        assert run.end() == 1 and time.monotonic() - began < 30
    sentence = "error: process 1 of 2 was killed by SIGKILL, so the others were ended too;"
    assert run.output.count(sentence) == 1 and run.output.endswith("what was saved, if anything was.\n")
    killed = max(steps(workdir))
    assert 12 <= killed < LAST

    with Launcher(shared, workdir, "--config.train.keep=1", "--config.data.workers=1") as run:
        assert run.end() == 0, run.output
    assert f"continuing {workdir} at step {killed}\n" in run.output
    assert metrics(workdir) == metrics(pair)
    jax.tree.map(np.testing.assert_array_equal, state(workdir), state(pair))
    assert steps(workdir) == [LAST]


def test_one_process_then_two_until_sigterm_then_one(shared, main, finished, tmp_path):
    """Ctrl-C reaches only the second of two processes, while they compile; it passes it on as a SIGTERM."""
    workdir = tmp_path / "run"
    newest = min(steps(finished))
    copy_until(finished, workdir, newest)
    with Launcher(shared, workdir) as run:
        run.until("compiling")
        run.signal_second(signal.SIGINT)
        assert run.end() == 0, run.output
    saved = max(steps(workdir))
    assert newest < saved < LAST
    assert f"SIGTERM: saved step {saved} in {workdir}; repeat the command to continue.\n" in run.output
    assert state(workdir, saved)[1]["next_index"] == 4 * saved

    with main(f"--config={TINY}", f"--workdir={workdir}", "--config.data.workers=1") as run:
        assert run.end() == 0, run.output
    assert f"continuing {workdir} at step {saved}\n" in run.output
    assert_close(workdir, finished, newest + 1)
