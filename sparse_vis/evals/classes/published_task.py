"""The published linear probe on a data set: fresh crops every epoch, shuffled."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np
from ml_collections import ConfigDict

from sparse_vis.evals.bench import Bench
from sparse_vis.evals.classes.linear_published import Protocol, published_linear
from sparse_vis.evals.features import POOLED, AnyArray
from sparse_vis.evals.maps.published_images import (
    ABOUT,
    centre_cuts,
    departures,
    epoch_order,
    label,
    random_cuts,
    squares,
)
from sparse_vis.evals.task import Result, Task

READS = ("sparse", "dense", "cls")  # the first of these that an encoder gives is used


def protocol(config: ConfigDict) -> Protocol:
    """The released hyperparameters, as changed by config.eval and the image size."""
    e = config.eval
    return Protocol(**e.linear_published, size=config.model.image_size, dtype=e.dtype)


def labelled(parts: Iterable[tuple[np.ndarray, list[int]]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Only the images that have a class, and their classes."""
    for images, labels in parts:
        classes = np.asarray(labels, np.int32)
        if (classes >= 0).any():
            yield images[classes >= 0], classes[classes >= 0]


def _measure(bench: Bench, config: ConfigDict) -> Result:
    train, test = (bench.data.parts[name] for name in bench.data.labelled)
    chosen = protocol(config)
    train = train.without(chosen.validation, bench.seed)
    key = next(key for key in READS if key in bench.encoder.gives)
    progress = bench.progress("linear_published", chosen.epochs * len(train))

    def encode(images: AnyArray) -> np.ndarray:
        # The head averages over tokens, so only the mean is kept, as a single token.
        return bench.encode(images, key)[key].mean(axis=1, keepdims=True)

    def epoch(number: int):
        order = epoch_order(train, bench.seed, number)
        cuts = random_cuts(chosen.size, chosen.scale, bench.seed, number)
        for part in labelled(squares(train, cuts, order, bench.batch, label)):
            yield part
            progress.add(len(part[1]))

    tests = labelled(squares(test, centre_cuts(test), np.arange(len(test)), bench.batch, label))
    found = published_linear(
        encode, epoch, tests, classes=bench.data.classes, protocol=chosen, seed=bench.seed
    )
    metrics = {POOLED[key]: {"accuracy": found.accuracy, "top5": found.top5}}
    return Result(metrics, details={"losses": found.losses})


def _settings(config: ConfigDict) -> dict:
    chosen = protocol(config)
    return {**dataclasses.asdict(chosen), "schedule": "constant", "betas": (0.9, 0.999), "eps": 1e-8,
            "layer_norm_eps": 1e-5, "images": ABOUT, "departures": departures(chosen)}  # fmt: skip


LINEAR_PUBLISHED = Task(_measure, ("label",), READS, lambda data: {}, _settings, least=(2, 1))
