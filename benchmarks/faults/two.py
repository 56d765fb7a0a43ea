"""Two processes that write to one folder.

The first must end as if it had been alone, the second with a sentence that names the first.
"""

from __future__ import annotations

import pathlib
import random
import shutil
import time
from collections.abc import Callable

import pyarrow.parquet as pq

from benchmarks.faults import kills
from benchmarks.faults.process import start
from benchmarks.faults.samples import picture_folder
from benchmarks.faults.tally import Tally

Command = tuple[str, list[str]]  # program, as of `start`, and its arguments


def both(
    tally: Tally, kind: str, command: Command, folder: pathlib.Path, delay: float,
    whole: Callable[[], list[str]],
) -> None:  # fmt: skip
    """Start a command twice.

    Args:
        tally, kind: get the trial. command: program and arguments. folder: for the outputs of both.
        delay: seconds between the starts. whole: what the folder lacks afterwards, in words.
    """
    program, arguments = command
    logs = [folder / "first.log", folder / "second.log"]
    first = start(arguments, logs[0], program)
    time.sleep(delay)
    second = start(arguments, logs[1], program)
    statuses = first.wait(), second.wait()
    texts = [log.read_text() for log in logs]
    wrong = whole()
    if statuses == (0, 0) and delay == 0:
        pass  # the second came when the first was done, on a machine that is busy
    elif sorted(statuses) != [0, 1]:
        wrong.append(f"ended with statuses {statuses}: {texts[0][-300:]} / {texts[1][-300:]}")
    else:
        loser, winner = statuses.index(1), (first, second)[statuses.index(0)]
        error = texts[loser].strip().splitlines()[-1]
        if not error.startswith("error: ") or "Traceback" in texts[loser] or str(winner.pid) not in error:
            wrong.append(f"the second says {texts[loser][-400:]!r}")
    if wrong:
        tally.fail(kind, "; ".join(wrong))
    else:
        tally.row(kind).refused += 1


def campaign(folder: pathlib.Path, tally: Tally, each: int, seed: int) -> None:
    """Training, evaluating, extracting and packing, twice at a time.

    Args:
        folder: for all that is written. tally: gets the trials. each: trials per kind. seed: of the delays.
    """
    chance, calm = random.Random(seed), folder / "calm"
    if start(kills.run_flags(calm, 0), folder / "calm.log").wait():
        raise RuntimeError((folder / "calm.log").read_text())
    expected, images = kills.final(calm), picture_folder(folder / "images", 60)
    for number in range(each):
        delay = chance.choice([0, chance.uniform(0, 5), chance.uniform(5, 15)])
        run = folder / f"run{number}"
        both(tally, "two trainings", ("main.py", kills.run_flags(run, 0)), folder, delay,
             lambda run=run: kills.differences(kills.final(run), expected))  # fmt: skip
        evaluate = [f"--workdir={calm}", "--mode=evaluate", "--config.eval.tasks=('scenes','knn')"]
        (calm / "evaluation.json").unlink(missing_ok=True)
        both(tally, "two evaluations", ("main.py", [f"--config={kills.TINY}", *evaluate]), folder, delay,
             lambda: [] if (calm / "evaluation.json").exists() else ["no evaluation.json"])  # fmt: skip
        features = folder / f"features{number}"
        both(tally, "two extractions", ("-m sparse_vis.extract", [
            f"--checkpoint={calm}", f"--input={images}", f"--output={features}", "--shard-size=4",
        ]), folder, delay, lambda features=features: lacking(features, 60))  # fmt: skip
        packed = folder / f"packed{number}"
        both(tally, "two packings", ("-m sparse_vis.data.pack", [
            f"--input={images}", f"--output={packed}", "--shard-size=4",
        ]), folder, delay, lambda packed=packed: packed_lacks(packed, images))  # fmt: skip
        for path in (run, features, packed):
            shutil.rmtree(path, ignore_errors=True)


def lacking(features: pathlib.Path, images: int) -> list[str]:
    """What a folder of features lacks."""
    names = [n for p in sorted(features.glob("*.parquet")) for n in pq.read_table(p)["name"].to_pylist()]
    return [] if len(set(names)) == len(names) == images else [f"{len(names)} rows of {images} images"]


def packed_lacks(packed: pathlib.Path, images: pathlib.Path) -> list[str]:
    """What a packed folder lacks of the images that were packed."""
    from sparse_vis.data.packed import PackedSource

    source = PackedSource(str(packed))
    records = [source[i] for i in range(len(source))]
    found = {record["name"]: record["image"] for record in records}
    files = {path.relative_to(images).as_posix(): path.read_bytes() for path in images.rglob("*.png")}
    return [] if found == files else ["packed records are not the images"]
