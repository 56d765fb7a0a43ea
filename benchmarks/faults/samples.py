"""Small sound inputs that faults are applied to."""

from __future__ import annotations

import importlib.util
import pathlib
from dataclasses import dataclass

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from benchmarks.faults.process import TINY, finish


def picture_folder(folder: pathlib.Path, count: int) -> pathlib.Path:
    """A folder with two classes of PNG pictures of noise."""
    draw = np.random.default_rng(0)
    for number in range(count):
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (30, 26, 3), np.uint8)).save(path)
    return folder


def config() -> ConfigDict:
    """The smallest configuration that has every part, the tests' own."""
    spec = importlib.util.spec_from_file_location("tiny_config", TINY)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


@dataclass(frozen=True)
class Samples:
    """Folders of everything that the project writes."""

    images: pathlib.Path
    run: pathlib.Path
    features: pathlib.Path
    packed: pathlib.Path
    exported: pathlib.Path


def extraction(run: pathlib.Path, images: pathlib.Path, output: pathlib.Path) -> list[str]:
    """Arguments of an extraction in several shards."""
    return [f"--checkpoint={run}", f"--input={images}", f"--output={output}", "--shard-size=16"]


def make(folder: pathlib.Path) -> Samples:
    """A finished run of 12 steps, and by it an extraction, packed images and exported weights.

    Args:
        folder: for all of them.
    """
    made = Samples(
        picture_folder(folder / "images", 40),
        *(folder / n for n in ("run", "features", "packed", "exported")),
    )
    finish("main.py", [f"--config={TINY}", f"--workdir={made.run}", "--config.train.steps=12"])
    finish("-m sparse_vis.extract", extraction(made.run, made.images, made.features))
    finish(
        "-m sparse_vis.data.pack", [f"--input={made.images}", f"--output={made.packed}", "--shard-size=16"]
    )
    finish("-m sparse_vis.export", [f"--checkpoint={made.run}", f"--output={made.exported}"])
    return made
