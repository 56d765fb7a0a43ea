"""Flip bits in, truncate or remove files of every kind that this project writes and reads again."""

import contextlib
import functools
import io
import json
import pathlib
import random
import shutil
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from benchmarks.faults.tally import Part
from sparse_vis.commands import extract
from sparse_vis.commands.export import export_released
from sparse_vis.commands.pack import pack
from sparse_vis.config import settings
from sparse_vis.data.packed import PackedSource
from sparse_vis.evals.results import Results
from sparse_vis.evals.task import Result
from sparse_vis.interop import step_folder
from sparse_vis.interop.load import read_model
from sparse_vis.train import checkpoint
from sparse_vis.train.log import JSONL, keep_until
from sparse_vis.train.loop import write_config
from sparse_vis.train.mesh import make_mesh, state_sharding
from sparse_vis.train.recipe import build_recipe
from sparse_vis.train.step import TrainState, initial_state
from sparse_vis.viz.figures import read_metrics
from tests.tiny_checkpoint import write_checkpoints
from tests.train.tiny_config import get_config

Kind = tuple[str, str, Callable[[pathlib.Path], Any], Callable[[Any, Any], bool]]


def picture_folder(folder: pathlib.Path, count: int) -> pathlib.Path:
    """Write a folder with two classes of PNG pictures of noise; returns it."""
    draw = np.random.default_rng(0)
    for number in range(count):
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (30, 26, 3), np.uint8)).save(path)
    return folder


@functools.cache
def shapes() -> tuple[TrainState, TrainState]:
    """Shapes and shardings of the run's state."""
    abstract = jax.eval_shape(functools.partial(initial_state, build_recipe(get_config())))
    return abstract, state_sharding(make_mesh((-1, 1)), abstract)


def extract_features(folder: pathlib.Path, features: pathlib.Path) -> None:
    """Run the extraction of `samples`, which continues an existing one."""
    flags = f"--checkpoint={folder / 'run'} --input={folder / 'images'} --output={features}"
    less = "--outputs=cls,sparse --batch=8 --shard-size=8 --threads=1"
    extract.extract(extract.parser().parse_args(f"{flags} {less}".split()))


def samples(folder: pathlib.Path) -> None:
    """Write undamaged inputs into `folder`, without training.

    They are `images`, a `run` with random parameters, its `features`, `packed` images and `exported` weights.
    """
    images, run = picture_folder(folder / "images", 20), folder / "run"
    write_checkpoints(run, {3: 0}, config=get_config())
    write_config(get_config(), run)
    rows = [{"step": step, "time": 1e9 + step, "total": 10 / step} for step in (1, 2, 3)]
    (run / JSONL).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    Results(run).add("trained", "knn", {"k": 20}, Result({"cls": {"top1": 0.125}}), {"seconds": 1.5})
    with contextlib.redirect_stdout(io.StringIO()):
        extract_features(folder, folder / "features")
        pack(images=str(images), output=folder / "packed", shard_size=8, threads=1, on_error="stop")
    export_released(str(run), folder / "exported")


def load(folder: pathlib.Path) -> dict:
    """What every tool loads of a model, and the EMA teacher."""
    found = read_model(folder, teacher=True)
    return {"params": found.params, "teacher": found.teacher, "config": settings.plain(found.config)}


def continued(run: pathlib.Path) -> Any:
    """What a continued run restores."""
    manager = checkpoint.open_manager(run, keep=1)
    try:
        return checkpoint.restore(manager, *shapes()), step_folder.read_config(step_folder.find_step(run))
    finally:
        manager.close()


def extract_and_read(made: pathlib.Path, features: pathlib.Path) -> dict:
    """Repeat the command of the extraction, then read its tables."""
    extract_features(made, features)
    tables = [pq.read_table(path).to_pydict() for path in sorted(features.glob("*.parquet"))]
    return {"tables": tables, "skipped": (features / "skipped.txt").read_text()}


def unpack(packed: pathlib.Path) -> dict:
    """All records of a packed folder."""
    source = PackedSource(str(packed))
    return {"classes": source.classes, "records": [source[i] for i in range(len(source))]}


def rows(run: pathlib.Path) -> list[dict]:
    """The metrics that a continued run keeps; also reads them as for a figure."""
    read_metrics(run / JSONL)
    return keep_until(run / JSONL, 3)


def equal(a: Any, b: Any) -> bool:
    """Whether two trees have equal leaves."""
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def others_are_kept(found: list[dict], original: list[dict]) -> bool:
    """Whether at most one row differs, or the last rows are gone, which is not noticed without checksums."""
    return found == original[: len(found)] or len([row for row in original if row not in found]) <= 1


def flip(data: bytes, at: int, bit: int) -> bytes:
    """The data with one bit flipped."""
    return data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


def damage(path: pathlib.Path, chance: random.Random) -> str:
    """Damage a file; returns, in words, how."""
    data, fault = path.read_bytes(), chance.choice(["flip"] * 8 + ["cut", "missing"])
    if fault == "missing" or not data:
        path.unlink()
        return f"{path.name} is missing"
    at = chance.randrange(len(data))
    if fault == "cut":
        path.write_bytes(data[:at])
        return f"{path.name} is cut at byte {at} of {len(data)}"
    if chance.random() < 0.7:  # mostly avoid the zeros with which some formats pad blocks
        at = chance.choice(np.flatnonzero(np.frombuffer(data, np.uint8)).tolist() or [at])
    path.write_bytes(flip(data, at, bit := chance.randrange(8)))
    return f"bit {bit} of byte {at} of {path.name}"


def fresh_copy(sound: pathlib.Path, copy: pathlib.Path) -> None:
    """Replace a damaged folder by a copy of the undamaged one."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(sound, copy)


def campaign(part: Part) -> None:
    """Damage one file at a time, 50 times for each way of reading it, and read it."""
    folder, copy = part.folder, part.folder / "damaged"
    samples(folder)
    kinds: dict[str, Kind] = {
        "a checkpoint, loaded": ("run", "checkpoints/3/**/*", load, equal),
        "a checkpoint, continued from": ("run", "checkpoints/3/**/*", continued, equal),
        "a run's config.json": ("run", "config.json", lambda run: settings.plain(settings.read(run)), equal),
        # Without the file, all is measured again.
        "evaluation.json": (
            "run", "evaluation.json", lambda run: Results(run).encoders, lambda a, b: a in (b, {})),
        "metrics.jsonl, other rows": ("run", JSONL, rows, others_are_kept),
        "features, command given again": (
            "features", "*", functools.partial(extract_and_read, folder), equal),
        "packed images": ("packed", "*", unpack, equal),
        "exported weights": ("exported", "*", load, equal),
    }  # fmt: skip
    for name, (sound, pattern, read, same) in kinds.items():
        expected = read(folder / sound)
        for _ in part.times(50):
            fresh_copy(folder / sound, copy)
            files = sorted(path for path in copy.glob(pattern) if path.is_file())
            fault = damage(part.chance.choice(files), part.chance)
            part.tally.judge(name, fault, lambda r=read: r(copy), lambda x, s=same, e=expected: s(x, e))
