"""The published linear probe on a data set: fresh crops of canvases every epoch, shuffled."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int
from ml_collections import ConfigDict

from sparse_vis.data.decode import decode, to_canvas
from sparse_vis.data.records import in_batches
from sparse_vis.evals.bench import Bench
from sparse_vis.evals.dataset import Part
from sparse_vis.evals.features import POOLED, AnyArray
from sparse_vis.evals.linear_published import Protocol, published_linear
from sparse_vis.evals.task import Result, Task
from sparse_vis.types import Batch

READS = ("sparse", "dense", "cls")  # of these the first one that an encoder gives


def protocol(config: ConfigDict) -> Protocol:
    """The published constants, with what config.eval.linear_published and the image size change of them."""
    return Protocol(**config.eval.linear_published, size=config.model.image_size)


def canvases(
    part: Part, order: Int[np.ndarray, " N"], size: int, batch_size: int
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Labelled images of a part on canvases, in the given order, and their classes.

    Args:
        part: of a data set. order: rows of the part. size: side of the canvases in pixels.
        batch_size: images read at a time; records without a label are left out, which makes it fewer.
    """

    def load(rows: np.ndarray) -> tuple[Batch, np.ndarray] | None:
        placed, labels, index = [], [], []
        for row in rows:
            record = part.source[int(part.indices[row])]
            if record["label"] >= 0:
                placed.append(to_canvas(decode(record), size, min_side=1))
                labels.append(record["label"])
                index.append(row)
        if not placed:
            return None
        images, heights, widths = (np.stack(column) for column in zip(*placed, strict=True))
        sides = heights.astype(np.int32), widths.astype(np.int32)
        return Batch(images, *sides, np.asarray(index, np.uint32)), np.asarray(labels, np.int32)

    return filter(None, in_batches(load, order, batch_size, part.threads))


def _measure(bench: Bench, config: ConfigDict) -> Result:
    train, test = (bench.data.parts[name] for name in bench.data.labelled)
    chosen = protocol(config)
    key = next(key for key in READS if key in bench.encoder.gives)
    progress = bench.progress("linear_published", chosen.epochs * len(train))
    canvas = max(config.data.canvas, config.model.image_size)

    def encode(images: AnyArray) -> np.ndarray:
        # The head takes the mean over tokens, so that is all that need be kept: of one token it is itself.
        return bench.encode(np.asarray(images), key)[key].mean(axis=1, keepdims=True)

    def epoch(number: int):
        order = np.random.default_rng((bench.seed, number)).permutation(len(train))
        for part in canvases(train, order, canvas, bench.batch):
            yield part
            progress.add(len(part[1]))

    def known():
        for records in test.batches(bench.batch):
            rows = np.flatnonzero(records.label >= 0)
            if len(rows):
                yield records.image[rows], records.label[rows]

    found = published_linear(
        encode, epoch, known(), classes=bench.data.classes, protocol=chosen, seed=bench.seed
    )
    metrics = {POOLED[key]: {"accuracy": found.accuracy, "top5": found.top5}}
    return Result(metrics, details={"losses": found.losses})


LINEAR_PUBLISHED = Task(
    _measure, ("label",), READS, lambda data: {}, lambda config: dataclasses.asdict(protocol(config))
)
