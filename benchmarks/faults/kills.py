"""Kill and continue runs, at random moments and during a save, until they are finished.

Such a run must equal an undisturbed one: each array of the last checkpoint bit by bit, its position in the
data, and each row of the metrics except for the columns in CLOCK.
"""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time

import jax
import numpy as np
import orbax.checkpoint as ocp

from benchmarks.faults.tally import Part

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TINY = ROOT / "tests" / "train" / "tiny_config.py"
CACHE = pathlib.Path(tempfile.gettempdir()) / "sparse_vis_faults_cache"
STEPS, SAVE_EVERY = 60, 5
CLOCK = ("time", "images_per_second", "input_wait_seconds")
MOMENTS = ("any time", "between steps", "in a save", "in a save")  # half of all kills hit a save


def start(words: list[str], log: pathlib.Path) -> subprocess.Popen:
    """Start a program of the project, given what follows `python`; its output is written to `log`."""
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(CACHE), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }  # fmt: skip
    with log.open("w") as file:
        command = [sys.executable, *words]
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=ROOT)


def check(process: subprocess.Popen, log: pathlib.Path, allowed: tuple[int, ...] = (0,)) -> int:
    """Wait for a program's end; returns its status. Raises RuntimeError for a status that is not allowed."""
    if (status := process.wait()) not in allowed:
        raise RuntimeError(f"ended with status {status}: {log.read_text()[-500:]}")
    return status


def run_words(workdir: pathlib.Path, workers: int) -> list[str]:
    """main.py and the flags of the run, which logs and saves at different steps."""
    return [
        "main.py", f"--config={TINY}", f"--workdir={workdir}", f"--config.data.workers={workers}",
        f"--config.train.steps={STEPS}", f"--config.train.save_every={SAVE_EVERY}",
        "--config.train.log_every=3",
    ]  # fmt: skip


def kill_once(workdir: pathlib.Path, workers: int, moment: str, chance: random.Random) -> bool:
    """Start or continue a run, and kill it at one of MOMENTS; returns False if it ended before that."""
    log = workdir.with_suffix(".log")
    process, begun = start(run_words(workdir, workers), log), time.monotonic()
    seen, since = set(), None  # checkpoints that were being written; when the moment began
    wait = {"any time": chance.uniform(0, 30), "between steps": chance.uniform(0, 3)}.get(moment)
    nth, wait = chance.randint(1, 3), chance.uniform(0, 0.1) if wait is None else wait
    while process.poll() is None:
        stepping = "images/s" in log.read_text()  # by then, remains of earlier saves have been removed
        seen |= set((workdir / "checkpoints").glob("*.orbax-checkpoint-tmp")) if stepping else set()
        now = {"any time": True, "between steps": stepping, "in a save": len(seen) >= nth}
        if since is None and now[moment]:
            since = begun if moment == "any time" else time.monotonic()
        if since is not None and time.monotonic() - since > wait:
            process.kill()
            process.wait()
        time.sleep(0.002)
    return check(process, log, (0, -signal.SIGKILL)) != 0


def final(workdir: pathlib.Path) -> tuple[dict, list[dict]]:
    """Path -> array, as bytes, of the last checkpoint; and the rows of the metrics without CLOCK."""
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
    """In words, in what two finished runs differ."""
    (arrays, rows), (arrays0, rows0) = found, expected
    wrong = sorted(arrays.keys() ^ arrays0.keys())
    wrong += sorted(name for name in arrays.keys() & arrays0.keys() if arrays[name] != arrays0[name])
    steps, steps0 = [row["step"] for row in rows], [row["step"] for row in rows0]
    if steps != steps0:
        return [*wrong, f"metrics have rows of steps {steps}, expected {steps0}"]
    return wrong + [f"row {a['step']}" for a, b in zip(rows, rows0, strict=True) if a != b]


def calm(folder: pathlib.Path) -> pathlib.Path:
    """Run a training without disturbing it; returns its workdir."""
    workdir, log = folder / "calm", folder / "calm.log"
    check(start(run_words(workdir, 0), log), log)
    return workdir


def campaign(part: Part) -> None:
    """Kill at least 60 times: runs with 0 and with 2 workers, in turn, each until it is finished."""
    expected, done, number, kills = final(calm(part.folder)), 0, 0, len(part.times(60))
    while done < kills:
        workers, workdir, count, wrong = (0, 2)[number % 2], part.folder / f"killed{number}", 0, []
        try:
            while kill_once(workdir, workers, part.chance.choice(MOMENTS), part.chance):
                count += 1
                print(f"kills: {done + count} of {kills}", flush=True)
            wrong = differences(final(workdir), expected)
        except RuntimeError as error:
            wrong = [f"it {error}"]
        part.tally.add(f"SIGKILL, {workers} workers", tried=count, wrong=wrong)
        done, number = done + count, number + 1
