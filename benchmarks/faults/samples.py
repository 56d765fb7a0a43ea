"""Small sound inputs that faults are applied to."""

from __future__ import annotations

import pathlib

import numpy as np
from PIL import Image


def picture_folder(folder: pathlib.Path, count: int) -> pathlib.Path:
    """A folder with two classes of PNG pictures of noise."""
    draw = np.random.default_rng(0)
    for number in range(count):
        path = folder / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (30, 26, 3), np.uint8)).save(path)
    return folder
