"""One encoder on one data set; all tasks share one pass over the images of each part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from sparse_vis.data.records import Records
from sparse_vis.evals.dataset import Data, multi_hot
from sparse_vis.evals.features import AnyArray, Encoder, encode
from sparse_vis.evals.pixels.networks import Networks
from sparse_vis.runtime.progress import Progress


class Reducer(NamedTuple):
    """Computes the columns that are kept of a batch.

    Attributes:
        keys: features of the encoder that it reads; skipped if the encoder does not give all of them.
        reduce: (features, records, networks) → columns: arrays with one row per image.
    """

    keys: tuple[str, ...]
    reduce: Callable[[dict[str, np.ndarray], Records, Networks], dict[str, np.ndarray]]


@dataclass
class Bench:
    """An encoder, the images, and the columns computed so far.

    Attributes:
        encoder, data, networks: as in their classes. batch: images per call of the encoder.
        seed: of all random draws. reducers: part → Reducers of all tasks.
    """

    encoder: Encoder
    data: Data
    networks: Networks
    batch: int
    seed: int
    reducers: dict[str, set[Reducer]]
    _columns: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)

    def encode(
        self, images: AnyArray, *wanted: str, progress: Progress | None = None
    ) -> dict[str, np.ndarray]:
        """The wanted features of any number of images, as far as the encoder gives them."""
        return encode(self.encoder, images, wanted, self.batch, progress)

    def columns(self, part: str) -> dict[str, np.ndarray]:
        """All columns of a part, with "label" and "sets" (flags) if it has them; computed once."""
        if part not in self._columns:
            self._columns[part] = self._pass(part)
        return self._columns[part]

    def progress(self, what: str, images: int) -> Progress:
        """A progress line for work on images of this encoder; call its `add` for images done."""
        return Progress(f"{self.encoder.name}: {what}", images)

    def _pass(self, part: str) -> dict[str, np.ndarray]:
        gives = set(self.encoder.gives)
        reducers = [r for r in self.reducers[part] if gives.issuperset(r.keys)]
        wanted = tuple(sorted({key for r in reducers for key in r.keys}))
        if not reducers:
            return {}
        kept: dict[str, list[np.ndarray]] = {}
        images = self.data.parts[part]
        progress = self.progress(f"{part} images", len(images))
        for records in images.batches(self.batch):
            features = self.encode(records.image, *wanted)
            sets = None if records.labels is None else multi_hot(records.labels, self.data.classes)
            found = {"label": records.label, "sets": sets}
            for reducer in reducers:
                found |= reducer.reduce(features, records, self.networks)
            for name, array in found.items():
                if array is not None:
                    kept.setdefault(name, []).append(array)
            progress.add(len(records.image))
        return {name: np.concatenate(arrays) for name, arrays in kept.items()}
