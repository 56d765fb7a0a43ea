"""Runs that are killed at random moments, and in the middle of a save, until they are finished.

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

from benchmarks.faults.process import TINY, finish, start
from benchmarks.faults.tally import Tally

STEPS, SAVE_EVERY = 60, 5
CLOCK = ("time", "images_per_second", "input_wait_seconds")
MOMENTS = ("any time", "between steps", "in a save", "in a save")  # half of all kills hit a save


def run_flags(workdir: pathlib.Path, workers: int) -> list[str]:
    """main.py's flags of the run; it logs at other steps than it saves at."""
    return [
        f"--config={TINY}", f"--workdir={workdir}", f"--config.data.workers={workers}",
        f"--config.train.steps={STEPS}", f"--config.train.save_every={SAVE_EVERY}",
        "--config.train.log_every=3",
    ]  # fmt: skip


def saving(workdir: pathlib.Path) -> set[pathlib.Path]:
    """Checkpoints that are being written now."""
    return set((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp"))


def kill_once(workdir: pathlib.Path, workers: int, moment: str, chance: random.Random) -> bool:
    """One life of a run; returns whether SIGKILL came before its own end.

    Args:
        workdir, workers: of the run. moment: of MOMENTS, or "never". chance: when exactly.

    Raises:
        RuntimeError: it ended by itself and failed.
    """
    log = workdir.with_suffix(".log")
    process, begun = start("main.py", run_flags(workdir, workers), log), time.monotonic()
    seen, since = set(), None  # saves of this life; when the moment began
    wait = {"any time": chance.uniform(0, 30), "between steps": chance.uniform(0, 3)}.get(moment)
    nth, wait = chance.randint(1, 3), chance.uniform(0, 0.1) if wait is None else wait
    while process.poll() is None:
        stepping = "images/s" in log.read_text()  # from here on nothing of an earlier life is left
        seen |= saving(workdir) if stepping else set()
        now = {"any time": True, "between steps": stepping, "in a save": len(seen) >= nth}
        if since is None and now.get(moment):
            since = begun if moment == "any time" else time.monotonic()
        if since is not None and time.monotonic() - since > wait:
            process.kill()
            process.wait()
        time.sleep(0.002)
    if process.returncode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"it ended with status {process.returncode}: {log.read_text()[-500:]}")
    return process.returncode == -signal.SIGKILL


def final(workdir: pathlib.Path) -> tuple[dict, list[dict]]:
    """The last checkpoint by path, arrays as bytes, and the rows of the metrics without the clock's."""
    folder = workdir / "checkpoints" / str(STEPS)
    with ocp.StandardCheckpointer() as reader:
        trees = {item: reader.restore((folder / item).resolve()) for item in ("params", "rest")}
    leaves = {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(trees)}
    arrays = {name: (x.dtype.name, x.shape, x.tobytes()) for name, x in leaves.items()}
    data = json.loads((folder / "data" / "metadata").read_text())
    arrays["data"] = json.dumps({key: value for key, value in data.items() if key != "checksums"})
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return arrays, [{k: v for k, v in row.items() if k not in CLOCK} for row in rows]


def differences(found: tuple[dict, list[dict]], expected: tuple[dict, list[dict]]) -> list[str]:
    """What of two finished runs is not the same, in words."""
    (arrays, rows), (arrays0, rows0) = found, expected
    wrong = sorted(arrays.keys() ^ arrays0.keys())
    wrong += sorted(name for name in arrays.keys() & arrays0.keys() if arrays[name] != arrays0[name])
    steps, steps0 = [row["step"] for row in rows], [row["step"] for row in rows0]
    if steps != steps0:
        wrong.append(f"metrics have rows of steps {steps}, expected {steps0}")
    else:
        wrong += [f"row {a['step']}" for a, b in zip(rows, rows0, strict=True) if a != b]
    return wrong


def calm(folder: pathlib.Path) -> pathlib.Path:
    """The run that is left alone, made once."""
    workdir = folder / "calm"
    if not workdir.exists():
        finish("main.py", run_flags(workdir, 0))
    return workdir


def campaign(folder: pathlib.Path, tally: Tally, scale: float, seed: int) -> None:
    """Kill runs with 0 and with 2 workers at least 60 times, each until it is finished.

    Args:
        folder: for the runs. tally: gets a trial for each kill. scale: of their number. seed: of the moments.
    """
    chance, expected, done, number = random.Random(seed), final(calm(folder)), 0, 0
    kills = max(1, round(60 * scale))
    while done < kills:
        workers, workdir, count, wrong = (0, 2)[number % 2], folder / f"killed{number}", 0, []
        try:
            while kill_once(workdir, workers, chance.choice(MOMENTS), chance):
                count += 1
                print(f"kills: {done + count} of {kills}", flush=True)
            wrong = differences(final(workdir), expected)
        except RuntimeError as error:
            wrong = [str(error)]
        tally.add(f"SIGKILL, {workers} workers", tried=count, wrong=wrong)
        done, number = done + count, number + 1
