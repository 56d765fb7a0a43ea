"""Interface of an evaluation: the bench it works on, what it keeps of each image, what it measures."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from sparse_vis.data.records import Records
from sparse_vis.evals.dataset import Data, multi_hot
from sparse_vis.evals.features import AnyArray, Encoder, encode
from sparse_vis.evals.pixels.networks import Networks
from sparse_vis.runtime.progress import Progress

Metrics = dict[str, dict[str, float | int]]


class Reducer(NamedTuple):
    """Computes the columns that are kept of a batch: arrays with one row per image."""

    keys: tuple[str, ...]  # features that it reads; it is skipped if the encoder does not give all of them
    reduce: Callable[[dict[str, np.ndarray], Records, Networks], dict[str, np.ndarray]]


@dataclass
class Bench:
    """One encoder on one data set; all tasks share one pass over the images of each part."""

    encoder: Encoder
    data: Data
    networks: Networks
    batch: int  # images per call of the encoder
    seed: int  # of all random draws
    reducers: dict[str, set[Reducer]]  # by part, of all tasks
    _columns: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)

    def encode(
        self, images: AnyArray, *wanted: str, progress: Progress | None = None
    ) -> dict[str, np.ndarray]:
        """The wanted features of any number of images, as far as the encoder gives them."""
        return encode(self.encoder, images, wanted, self.batch, progress)

    def progress(self, what: str, images: int) -> Progress:
        """A progress line for work on images of this encoder."""
        return Progress(f"{self.encoder.name}: {what}", images)

    def columns(self, part: str) -> dict[str, np.ndarray]:
        """All columns of a part, with "label" and "sets" (flags) if it has them; computed once."""
        if part not in self._columns:
            self._columns[part] = self._pass(part)
        return self._columns[part]

    def _pass(self, part: str) -> dict[str, np.ndarray]:
        reducers = [r for r in self.reducers[part] if set(r.keys) <= set(self.encoder.gives)]
        if not reducers:
            return {}
        wanted = sorted({key for r in reducers for key in r.keys})
        kept, images = [], self.data.parts[part]
        progress = self.progress(f"{part} images", len(images))
        for records in images.batches(self.batch):
            features = self.encode(records.image, *wanted)
            sets = None if records.labels is None else multi_hot(records.labels, self.data.classes)
            found = {"label": records.label, "sets": sets}
            for reducer in reducers:
                found |= reducer.reduce(features, records, self.networks)
            kept.append({name: array for name, array in found.items() if array is not None})
            progress.add(len(records.image))
        return jax.tree.map(lambda *batches: np.concatenate(batches), *kept)


@dataclass(frozen=True)
class Result:
    """What a task measured of an encoder."""

    metrics: Metrics  # what was measured (a feature or head; "" if there is only one) → metric → number
    absent: dict[str, str] = field(default_factory=dict)  # metric, or the task's name for all → reason
    details: dict = field(default_factory=dict)  # other plain values for the record of results


@dataclass(frozen=True)
class Task:
    """One evaluation.

    Attributes:
        needs: what records must have: "label", "class" (a label or a set), "mask" (instances), "map".
        reads: features of the encoder, of which the task needs at least one.
        reducers: data → part → Reducers that the shared pass over its images applies.
        protocol: configuration → all constants of the protocol, as plain values.
        networks: whether the task uses the networks of rFID and LPIPS.
        least: smallest numbers of train and test images; with a class, if the task needs classes.
        picture: a file in the workdir and what draws it, for the run's own model if it has L and a decoder.
    """

    measure: Callable[[Bench, ConfigDict], Result]
    needs: tuple[str, ...]
    reads: tuple[str, ...]
    reducers: Callable[[Data], dict[str, tuple[Reducer, ...]]]
    protocol: Callable[[ConfigDict], dict]
    networks: bool = False
    least: tuple[int, int] = (1, 1)
    picture: tuple[str, Callable[[Bench, ConfigDict, pathlib.Path], None]] | None = None
