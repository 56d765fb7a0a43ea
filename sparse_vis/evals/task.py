"""Interface of an evaluation: the bench it works on, the columns it keeps of each image, its result."""

from __future__ import annotations

import math
import os
import pathlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from sparse_vis.data.records import Records
from sparse_vis.evals.dataset import Data, multi_hot
from sparse_vis.evals.features import AnyArray, Encoder, encode
from sparse_vis.evals.pixels.networks import Networks
from sparse_vis.runtime.progress import Progress

IN_MEMORY = 2**30  # bytes; at 1.28 million images, all tokens of S of a ViT-B are 63 GB
Metrics = dict[str, dict[str, float | int]]


class Reducer(NamedTuple):
    """Computes columns, arrays with one row per image, which are all that is kept of a batch."""

    keys: tuple[str, ...]  # features that it reads; without all of them, its columns are absent
    reduce: Callable[[dict[str, np.ndarray], Records, Networks], dict[str, np.ndarray]]


@dataclass
class Bench:
    """One encoder on one data set; all tasks share one pass over the images of each part."""

    encoder: Encoder
    data: Data
    networks: Networks
    batch: int  # images per call of the encoder
    seed: int  # of all random numbers
    reducers: dict[str, set[Reducer]]  # part → those of all tasks
    folder: pathlib.Path | None = None  # for columns that are too large for memory; None: keep all in memory
    _columns: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)

    def encode(
        self, images: AnyArray, *wanted: str, progress: Progress | None = None
    ) -> dict[str, np.ndarray]:
        """Those of the wanted features that the encoder gives, of any number of images."""
        return encode(self.encoder, images, wanted, self.batch, progress)

    def progress(self, what: str, images: int) -> Progress:
        """A progress line for work on images of this encoder."""
        return Progress(f"{self.encoder.name}: {what}", images)

    def columns(self, part: str) -> dict[str, np.ndarray]:
        """All columns of a part, and "label" and "sets" (flags) if records have them; computed once."""
        if part not in self._columns:
            self._columns[part] = self._pass(part)
        return self._columns[part]

    def _pass(self, part: str) -> dict[str, np.ndarray]:
        reducers = [r for r in self.reducers[part] if set(r.keys) <= set(self.encoder.gives)]
        if not reducers:
            return {}
        wanted = sorted({key for r in reducers for key in r.keys})
        columns, images, done = {}, self.data.parts[part], 0
        progress = self.progress(f"{part} images", len(images))

        def compute(records: Records) -> dict[str, np.ndarray]:
            features = self.encode(records.image, *wanted)
            sets = None if records.labels is None else multi_hot(records.labels, self.data.classes)
            found = {"label": records.label, "sets": sets}
            for reducer in reducers:
                found |= reducer.reduce(features, records, self.networks)
            return {name: array for name, array in found.items() if array is not None}

        for found in images.in_shares(self.batch, compute):
            if not columns:
                columns = {name: _column(len(images), x, self.folder) for name, x in found.items()}
            rows = slice(done, done + len(next(iter(found.values()))))
            for name, column in columns.items():
                column[rows] = found[name]
            progress.add(rows.stop - done)
            done = rows.stop
        return columns


def _column(count: int, batch: np.ndarray, folder: pathlib.Path | None) -> np.ndarray:
    """An empty array of `count` rows like these; from IN_MEMORY bytes on in a file, deleted with it."""
    shape = (count, *batch.shape[1:])
    size = math.prod(shape) * batch.dtype.itemsize
    if folder is None or size < IN_MEMORY:
        return np.empty(shape, batch.dtype)
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error here, and a signal later
        return np.memmap(file, batch.dtype, "r+", shape=shape)


@dataclass(frozen=True)
class Result:
    """What a task measured of an encoder."""

    metrics: Metrics  # what was measured (a feature or head; "" if there is only one) → metric → number
    absent: dict[str, str] = field(default_factory=dict)  # metric, or for all the task's name → reason
    details: dict = field(default_factory=dict)  # other plain values for evaluation.json


@dataclass(frozen=True)
class Task:
    """One evaluation."""

    measure: Callable[[Bench, ConfigDict], Result]
    needs: tuple[str, ...]  # of records: "label", "class" (a label or a set), "mask" (instances), "map"
    reads: tuple[str, ...]  # features of the encoder, of which the task needs at least one
    reducers: Callable[[Data], dict[str, tuple[Reducer, ...]]]  # part → those of the shared pass
    protocol: Callable[[ConfigDict], dict]  # all constants of the protocol, as plain values
    networks: bool = False  # whether it uses the networks of rFID and LPIPS
    least: tuple[int, int] = (1, 1)  # fewest train and test images (with a class, if it needs classes)
    # A file in the workdir and the function that draws it, for the run's own model if it has L and a decoder.
    picture: tuple[str, Callable[[Bench, ConfigDict, pathlib.Path], None]] | None = None
