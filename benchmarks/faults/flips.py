"""Flipped bits, cut and missing files, in every kind of file that this project writes and reads again."""

from __future__ import annotations

import functools
import pathlib
import random
import shutil
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pyarrow.parquet as pq

from benchmarks.faults import samples
from benchmarks.faults.tally import Tally
from sparse_vis.config import settings
from sparse_vis.data.packed import PackedSource
from sparse_vis.evals.results import Results
from sparse_vis.interop import step_folder
from sparse_vis.interop.load import read_model
from sparse_vis.train import checkpoint
from sparse_vis.train.progress import JSONL, keep_until
from sparse_vis.viz.figures import read_metrics

Reader = Callable[[pathlib.Path], Any]


def load(folder: pathlib.Path) -> Any:
    """What every tool loads, and the EMA copy."""
    found = read_model(folder, teacher=True)
    return {"params": found.params, "teacher": found.teacher, "config": settings.plain(found.config)}


def go_on(run: pathlib.Path) -> Any:
    """What a continued run starts from."""
    manager = checkpoint.open_manager(run, keep=1)
    try:
        state = checkpoint.restore(manager, *samples.shapes())
        return state, step_folder.read_config(step_folder.find_step(run))
    finally:
        manager.close()


def extract_and_read(made: pathlib.Path, features: pathlib.Path) -> Any:
    """Gives the command of the extraction again, then reads its tables."""
    samples.extract_again(made, features)
    tables = [pq.read_table(path).to_pydict() for path in sorted(features.glob("*.parquet"))]
    return {"tables": tables, "skipped": (features / "skipped.txt").read_text()}


def unpack(packed: pathlib.Path) -> Any:
    """All records of a packed folder."""
    source = PackedSource(str(packed))
    return {"classes": source.classes, "records": [source[i] for i in range(len(source))]}


def known(run: pathlib.Path) -> dict:
    """Evaluations, but no promise that there are any: without the file all is measured again."""
    return Results(run).encoders if (run / "evaluation.json").exists() else {}


def damage(path: pathlib.Path, chance: random.Random) -> str:
    """Damages a file; returns how, in words."""
    data, fault = bytearray(path.read_bytes()), chance.choice(["flip"] * 8 + ["cut", "missing"])
    if fault == "missing" or not data:
        path.unlink()
        return f"{path.name} is missing"
    at = chance.randrange(len(data))
    if fault == "cut":
        path.write_bytes(data[:at])
        return f"{path.name} is cut at byte {at} of {len(data)}"
    if chance.random() < 0.7:  # rather not in the zeros that some formats fill up blocks with
        at = chance.choice(np.flatnonzero(np.frombuffer(data, np.uint8)).tolist() or [at])
    data[at] ^= 1 << (bit := chance.randrange(8))
    path.write_bytes(data)
    return f"bit {bit} of byte {at} of {path.name}"


def equal(a: Any, b: Any) -> bool:
    """Whether two trees have the same leaves, bit by bit."""
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def rows(run: pathlib.Path) -> list[dict]:
    """Metrics that are read for a figure, and those that a continued run keeps."""
    read_metrics(run / JSONL)
    return keep_until(run / JSONL, 3)


def others_are_kept(found: list[dict], original: list[dict]) -> bool:
    """Whether at most one row differs, or the last ones are gone: rows have no checksums."""
    return found == original[: len(found)] or len([row for row in original if row not in found]) <= 1


def campaign(folder: pathlib.Path, tally: Tally, scale: float, seed: int) -> None:
    """Damage one file at a time, 50 times for each way of reading, and read.

    Args:
        folder: for all that is written. tally: gets the trials. scale: of their number. seed: of the faults.
    """
    chance, copy = random.Random(seed), folder / "damaged"
    samples.make(folder)
    kinds: dict[str, tuple[str, str, Reader, Callable[[Any, Any], bool]]] = {
        "a checkpoint, loaded": ("run", "checkpoints/3/**/*", load, equal),
        "a checkpoint, gone on from": ("run", "checkpoints/3/**/*", go_on, equal),
        "a run's config.json": ("run", "config.json", lambda run: settings.plain(settings.read(run)), equal),
        "evaluation.json": ("run", "evaluation.json", known, lambda a, b: a in (b, {})),
        "metrics.jsonl, other rows": ("run", JSONL, rows, others_are_kept),
        "features, command given again": (
            "features", "*", functools.partial(extract_and_read, folder), equal),
        "packed images": ("packed", "*", unpack, equal),
        "exported weights": ("exported", "*", load, equal),
    }  # fmt: skip
    for name, (sound, pattern, read, same) in kinds.items():
        expected = read(folder / sound)
        for _ in range(max(1, round(50 * scale))):
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(folder / sound, copy)
            fault = damage(chance.choice(sorted(p for p in copy.glob(pattern) if p.is_file())), chance)
            tally.judge(name, fault, lambda r=read: r(copy), lambda x, s=same, e=expected: s(x, e))
