"""Runs that are killed and started again, as real processes."""

import json
import os
import shutil
import signal

import jax
import numpy as np
import orbax.checkpoint as ocp
from main_process import TINY, Main, gone

LAST = 24
CLOCK = ("time", "images_per_second", "input_wait_seconds")


def state(workdir, step=LAST):
    """Every array of a checkpoint, and its position in the data."""
    folder = workdir / "checkpoints" / str(step)
    with ocp.StandardCheckpointer() as reader:
        arrays = {item: reader.restore((folder / item).resolve()) for item in ("params", "rest")}
    position = json.loads((folder / "data" / "metadata").read_text())
    position["checksums"].pop("config")  # in which the number of workers may differ
    return arrays, position


def metrics(workdir):
    """Lines of metrics.jsonl without what depends on the clock; only valid JSON is accepted."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=refuse) for line in lines]
    return [{name: value for name, value in row.items() if name not in CLOCK} for row in rows]


def assert_same_run(workdir, expected):
    (arrays, position), (expected_arrays, expected_position) = state(workdir), state(expected)
    assert position == expected_position
    assert jax.tree.structure(arrays) == jax.tree.structure(expected_arrays)
    leaves = jax.tree.leaves_with_path(expected_arrays)
    assert len(leaves) > 100
    for (path, leaf), found in zip(leaves, jax.tree.leaves(arrays), strict=True):
        np.testing.assert_array_equal(found, leaf, err_msg=jax.tree_util.keystr(path))
    assert metrics(workdir) == metrics(expected)


def test_a_run_says_what_it_trains_and_where_things_lie(finished):
    lines = (finished.parent / "run.log").read_text().splitlines()
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state(finished)[0]["params"]))
    start = lines.index("50000 images in split train of the scenes, 10 classes")
    assert lines[start + 1 : start + 5] == [
        f"model: {parameters:,} parameters, r = 4 tokens, n = 16 patches of 6x6 pixels, images 24x24",
        "training: 24 steps of 4 images, 12500 steps an epoch, 0.00 epochs",
        "devices: 1 x cpu",
        "compiling the step ...",
    ]
    shown = [line for line in lines if line.startswith("step ")]
    assert len(shown) == LAST and max(map(len, shown)) <= 100
    for line, row in zip(shown, metrics(finished), strict=True):
        assert line.endswith(f"total {row['total']:.4g}  PSNR {-10 * np.log10(row['reconstruction']):.2f} dB")
    assert lines[-7:] == [
        f"in {finished}:",
        "  checkpoints/24    the newest checkpoint",
        "  metrics.jsonl     all numbers of training; tensorboard/ has them too",
        "next:",
        f"  python -m sparse_vis report --checkpoint={finished} --output=report.html",
        f"  python -m sparse_vis extract --checkpoint={finished} --input=FOLDER --output=features",
        f"  model, params = sparse_vis.load({str(finished)!r})  # in Python",
    ]


def test_another_seed_compiles_nothing_anew(quick, finished, tmp_path):
    """Views, first weights and health draw from the seed, which is an argument of all their programs."""
    own = tmp_path / "cache"  # into which no other test writes
    shutil.copytree(quick["JAX_COMPILATION_CACHE_DIR"], own, copy_function=os.link)
    before = {path.name for path in own.glob("*-cache")}
    environment = quick | {"JAX_COMPILATION_CACHE_DIR": str(own)}
    seed = (f"--config={TINY}", f"--workdir={tmp_path / 'run'}", "--config.seed=1")
    with Main(environment, tmp_path / "run.log", *seed) as run:
        assert run.end() == 0, run.output
    assert any("jit_step" in name for name in before)
    assert {path.name for path in own.glob("*-cache")} == before
    assert metrics(tmp_path / "run")[0]["total"] != metrics(finished)[0]["total"]


def test_killed_stopped_and_continued_ends_bit_identical(main, finished, tmp_path):
    """SIGKILL in a step and in a save, Ctrl-C before the first step, SIGTERM later; 0, 1 and 2 workers."""
    workdir = tmp_path / "run"
    checkpoints = workdir / "checkpoints"
    start = [f"--config={TINY}", f"--workdir={workdir}"]

    with main(*start) as run:
        run.until("step 8/")
        run.until((checkpoints / "6").is_dir)
        run.kill()
    assert f"step {LAST}/" not in run.output

    with main(*start, "--config.data.workers=1") as run:
        run.until("compiled")
        run.until(lambda: list(checkpoints.glob("*.orbax-checkpoint-tmp")))
        workers = run.children()
        run.kill()
    assert f"continuing {workdir} at step" in run.output and gone(workers) and workers
    assert list(checkpoints.glob("*.orbax-checkpoint-tmp")), "the kill came after the save"

    with main(*start, "--config.data.workers=2") as run:
        run.until("compiling")
        workers = run.children()
        assert run.end(signal.SIGINT) == -signal.SIGINT, run.output
    # (A worker that is just starting may have the last word: what it reads of its parent is cut short.)
    assert (
        "\nCtrl-C before the first step: there was nothing to save; repeat the command to start again.\n"
        in run.output
    )
    assert "leaked" not in run.output
    assert "images/s" not in run.output and gone(workers) and len(workers) >= 2

    with main(*start, "--config.data.workers=2") as run:
        run.until("images/s")
        workers = run.children()
        assert run.end(signal.SIGTERM) == 0, run.output
    saved = max(int(folder.name) for folder in checkpoints.iterdir())
    assert run.output.endswith(f"SIGTERM: saved step {saved} in {workdir}; repeat the command to continue.\n")
    assert saved < LAST and gone(workers) and len(workers) >= 2
    assert not list(checkpoints.glob("*.orbax-checkpoint-tmp"))

    with main(f"--workdir={workdir}") as run:
        assert run.end() == 0, run.output
    assert f"continuing {workdir} at step {saved}\n" in run.output
    assert_same_run(workdir, finished)


def test_a_finished_run_is_only_evaluated_and_a_sigterm_ends_that(main, finished, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "run")
    with main(f"--config={TINY}", f"--workdir={workdir}", "--config.eval.tasks=scenes") as run:
        run.until("evaluating")
        assert run.end(signal.SIGTERM) == 0, run.output
    assert f"{workdir} is already finished (step 24 of 24); there is nothing left to train.\n" in run.output
    assert "compiling" not in run.output and "step 1/" not in run.output
    assert "SIGTERM during the evaluation" in run.output.splitlines()[-1]
    before, after = ((state(folder), metrics(folder)) for folder in (finished, workdir))
    jax.tree.map(np.testing.assert_array_equal, after, before)
