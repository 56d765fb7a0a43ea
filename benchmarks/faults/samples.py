"""Small sound inputs that faults are applied to, made without training."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import pathlib

import jax
import numpy as np
from PIL import Image

from sparse_vis.commands import extract
from sparse_vis.commands.export import export_released
from sparse_vis.commands.pack import pack
from sparse_vis.evals.results import Results
from sparse_vis.evals.task import Result
from sparse_vis.train import checkpoint
from sparse_vis.train.loop import write_config
from sparse_vis.train.mesh import make_mesh, state_sharding
from sparse_vis.train.progress import JSONL
from sparse_vis.train.recipe import build_recipe
from sparse_vis.train.step import TrainState, initial_state
from tests.train.tiny_config import get_config


def picture_folder(folder: pathlib.Path, count: int) -> pathlib.Path:
    """A folder with two classes of PNG pictures of noise."""
    draw = np.random.default_rng(0)
    for number in range(count):
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (30, 26, 3), np.uint8)).save(path)
    return folder


@functools.cache
def shapes() -> tuple[TrainState, TrainState]:
    """Shapes and shardings of a run's state."""
    abstract = jax.eval_shape(functools.partial(initial_state, build_recipe(get_config())))
    return abstract, state_sharding(make_mesh((-1, 1)), abstract)


def extract_again(folder: pathlib.Path, features: pathlib.Path) -> None:
    """The extraction of `make`; finds most of it done the second time."""
    flags = f"--checkpoint={folder / 'run'} --input={folder / 'images'} --output={features}"
    less = "--outputs=cls,sparse --batch=8 --shard-size=8 --threads=1"
    extract.extract(extract.parser().parse_args(f"{flags} {less}".split()))


def make(folder: pathlib.Path) -> None:
    """`images`, a `run` of random numbers, and of it `features`, `packed` images and `exported` weights.

    Args:
        folder: for all of them.
    """
    config, images, run = get_config(), picture_folder(folder / "images", 20), folder / "run"
    abstract, sharding = shapes()
    draw = np.random.default_rng(0).normal
    state = jax.tree.map(lambda x: draw(0, 0.2, x.shape).astype(x.dtype), abstract)
    state = jax.device_put(state.replace(step=np.int32(3)), sharding)
    manager = checkpoint.open_manager(run, keep=1)
    checkpoint.save(manager, state, {"next_index": 12}, config)
    checkpoint.finish(manager)
    manager.close()
    write_config(config, run)
    rows = [{"step": step, "time": 1e9 + step, "total": 10 / step} for step in (1, 2, 3)]
    (run / JSONL).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    Results(run).add("trained", "knn", {"k": 20}, Result({"cls": {"top1": 0.125}}), {"seconds": 1.5})
    with contextlib.redirect_stdout(io.StringIO()):
        extract_again(folder, folder / "features")
        pack(folder=str(images), output=folder / "packed", shard_size=8, threads=1, on_error="stop")
    export_released(str(run), folder / "exported")
