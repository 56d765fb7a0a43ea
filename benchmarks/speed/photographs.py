"""JPEG files made on the fly from scikit-learn's photographs, as a data source in memory."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images


def photographs(count: int, width: int, height: int, quality: int) -> list[bytes]:
    """JPEG files of random parts of two photographs, of at least 70 % of their height.

    Args:
        count: of files. width, height: in pixels. quality: of the JPEGs, up to 95.
    """
    pictures, rng, files = load_sample_images().images, np.random.default_rng(0), []
    for i in range(count):
        picture = pictures[i % len(pictures)]
        part = int(picture.shape[0] * rng.uniform(0.7, 1)), int(picture.shape[1] * rng.uniform(0.7, 1))
        top, left = (
            rng.integers(0, whole - size + 1) for whole, size in zip(picture.shape, part, strict=False)
        )
        cut = Image.fromarray(picture[top : top + part[0], left : left + part[1]])
        buffer = io.BytesIO()
        cut.resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=quality)
        files.append(buffer.getvalue())
    return files


class Photographs:
    """`sparse_vis.data.sources.Source` over such files, as often as `records` asks for."""

    classes = ()

    def __init__(self, files: list[bytes], records: int):
        self.files, self.records = files, records

    def __len__(self) -> int:
        return self.records

    def __repr__(self) -> str:
        return f"Photographs({len(self.files)} files, {self.records} records)"

    def __getitem__(self, index: int) -> dict:
        return {"image": self.files[int(index) % len(self.files)], "name": f"photograph {index}"}
