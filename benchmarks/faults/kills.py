"""Runs that are killed at random moments, and in the middle of a save, until they are finished.

Every life of a run gets SIGKILL after a random time, or as soon as a checkpoint's temporary folder is seen.
A run that was finished that way must equal one that was left alone: each array of the last checkpoint bit by
bit, its position in the data, and each row of the metrics but for the clock's columns.
"""

from __future__ import annotations

import json
import pathlib
import random
import signal
import time

import jax
import numpy as np
import orbax.checkpoint as ocp

from benchmarks.faults.process import TINY, start
from benchmarks.faults.tally import Tally

STEPS, SAVE_EVERY = 60, 5
CLOCK = ("time", "images_per_second", "input_wait_seconds")


def run_flags(workdir: pathlib.Path, workers: int) -> list[str]:
    """main.py's flags of the run; it logs at other steps than it saves at."""
    return [
        f"--config={TINY}", f"--workdir={workdir}", f"--config.data.workers={workers}",
        f"--config.train.steps={STEPS}", f"--config.train.save_every={SAVE_EVERY}",
        "--config.train.log_every=3",
    ]  # fmt: skip


def saving(workdir: pathlib.Path) -> bool:
    """Whether a checkpoint is being written now."""
    return any((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp"))


def kill_once(workdir: pathlib.Path, workers: int, latest: float | None) -> bool:
    """One life; returns whether SIGKILL came before its own end.

    Args:
        workdir, workers: of the run. latest: seconds after which it is killed; None: in the middle of a save.

    Raises:
        RuntimeError: it ended by itself and failed.
    """
    log = workdir.with_suffix(".log")
    process, begun = start(run_flags(workdir, workers), log), time.monotonic()
    while process.poll() is None:
        if latest is not None:
            due = time.monotonic() - begun > latest
        else:  # a leftover of an earlier life is removed before the first step
            due = "images/s" in log.read_text() and saving(workdir)
        if due:
            process.send_signal(signal.SIGKILL)
            process.wait()
        time.sleep(0.001)
    if process.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"a continued run ended with status {process.returncode}: {log.read_text()}")
    return process.returncode == -signal.SIGKILL


def final(workdir: pathlib.Path) -> tuple[dict, list[dict]]:
    """Arrays and position of the last checkpoint by path, and the rows of the metrics without the clock's."""
    folder = workdir / "checkpoints" / str(STEPS)
    with ocp.StandardCheckpointer() as reader:
        trees = {item: reader.restore((folder / item).resolve()) for item in ("params", "rest")}
    arrays = {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(trees)}
    arrays["position"] = json.loads((folder / "data" / "metadata").read_text())["next_index"]
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return arrays, [{k: v for k, v in row.items() if k not in CLOCK} for row in rows]


def differences(found: tuple[dict, list[dict]], expected: tuple[dict, list[dict]]) -> list[str]:
    """What of two finished runs is not the same, in words."""
    (arrays, rows), (arrays0, rows0) = found, expected
    wrong = sorted(arrays.keys() ^ arrays0.keys())
    both = arrays.keys() & arrays0.keys()
    wrong += [name for name in both if not np.array_equal(arrays[name], arrays0[name])]
    steps, steps0 = [row["step"] for row in rows], [row["step"] for row in rows0]
    if steps != steps0:
        wrong.append(f"metrics have rows of steps {steps}, expected {steps0}")
    else:
        wrong += [f"row {a['step']}" for a, b in zip(rows, rows0, strict=True) if a != b]
    return wrong


def campaign(folder: pathlib.Path, tally: Tally, kills: int, seed: int) -> None:
    """Kill runs with 0 and with 2 workers, each until it has had its share of the kills and is finished.

    Args:
        folder: for the runs. tally: gets a trial for each kill. kills: how many at least.
        seed: of the moments.
    """
    chance, calm = random.Random(seed), folder / "calm"
    begun = time.monotonic()
    if start(run_flags(calm, 0), calm.with_suffix(".log")).wait():
        raise RuntimeError(calm.with_suffix(".log").read_text())
    longest, expected, done, number = time.monotonic() - begun, final(calm), 0, 0
    while done < kills:
        workers, workdir, count, wrong = (0, 2)[number % 2], folder / f"killed{number}", 0, []
        try:
            while not (workdir / "checkpoints" / str(STEPS)).is_dir() or saving(workdir):
                latest = chance.uniform(0, longest) if chance.random() < 0.5 else None
                count += kill_once(workdir, workers, latest)
                print(f"kills: {done + count} of {kills}", flush=True)
            kill_once(workdir, workers, latest=600)  # it may still have rows of its metrics to write
            wrong = differences(final(workdir), expected)
        except RuntimeError as error:
            wrong = [str(error)]
        tally.add(f"SIGKILL, {workers} workers", tried=count, wrong=wrong)
        done, number = done + count, number + 1
