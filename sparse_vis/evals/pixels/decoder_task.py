"""The published reconstruction probe on a data set: Z of STELLAR, U of other encoders."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Num
from ml_collections import ConfigDict

from sparse_vis.evals.columns import compared, quality
from sparse_vis.evals.dataset import Part
from sparse_vis.evals.features import encode, square_grid
from sparse_vis.evals.maps.published_images import (
    ABOUT,
    Maker,
    centre_cuts,
    departures,
    epoch_order,
    random_cuts,
    squares,
)
from sparse_vis.evals.pixels.decoder_probe import DecoderProbe, Protocol, fit
from sparse_vis.evals.pixels.fid import Moments, to_uint8
from sparse_vis.evals.pixels.networks import at_256, identity
from sparse_vis.evals.task import Bench, Result, Task
from sparse_vis.interop.maskgit import load_tokenizer
from sparse_vis.runtime.progress import Progress

read_tokenizer = functools.cache(load_tokenizer)
TEST_KEY = 2**32  # used instead of the epoch in the seed of test crops; no epoch reaches it


def protocol(e: ConfigDict) -> Protocol:
    """The released hyperparameters, as changed by config.eval.reconstruction_probe and config.eval.dtype."""
    return Protocol(**e.reconstruction_probe, dtype=e.dtype)


def probed(bench: Bench, images: Num[np.ndarray, "N H W 3"], batch: int) -> Float[np.ndarray, "N n d"]:
    """Input features of the decoder: Z = L S if the encoder factorizes, else U.

    Args:
        bench: with the encoder. images: square. batch: images per call of the encoder.
    """
    found = []
    for start in range(0, len(images), batch):
        wanted = ("sparse", "spatial", "dense")
        features = encode(bench.encoder, images[start : start + batch], wanted, batch)
        if {"sparse", "spatial"} <= features.keys():
            found.append(features["spatial"] @ features["sparse"])
        else:
            found.append(features["dense"])
    return np.concatenate(found)


def _pairs(
    bench: Bench, part: Part, make: Maker, rows: np.ndarray, size: int, progress: Progress
) -> Iterator:
    """Features and images, in the given order, `size` at a time."""
    for images, _ in squares(part, make, rows, size, lambda record, cut: None):
        yield probed(bench, images, min(bench.batch, size)), images
        progress.add(len(images))


def _judge(bench: Bench, probe: DecoderProbe, make: Maker, name: str) -> tuple[dict, dict]:
    """Metrics over all test images, read once; and absent metric → reason."""
    test, networks = bench.data.parts["test"], bench.networks
    kept: dict[str, list[np.ndarray]] = {}
    true = None
    progress = bench.progress(f"reconstruction_probe, {name}", len(test))
    for Z, images in _pairs(bench, test, make, np.arange(len(test)), bench.batch, progress):
        columns = compared(probe.reconstruct(Z), images, networks)
        for column in columns:
            kept.setdefault(column, []).append(columns[column])
        if "inception" in columns:
            found = networks.inception(at_256(to_uint8(images)))
            true = (true or Moments.empty(found.shape[1])).update(found)
    return quality({column: np.concatenate(parts) for column, parts in kept.items()}, networks, lambda: true)


def _measure(bench: Bench, config: ConfigDict) -> Result:
    chosen, t, test = protocol(config.eval), config.model.tokenizer, bench.data.parts["test"]
    train = bench.data.parts["train"].without(chosen.validation, bench.seed)
    patches = probed(bench, next(test.first(1).batches(1)).image, bench.batch).shape[1]
    if patches == 1:
        return Result({}, {"reconstruction_probe": "it has one token for the whole image"})
    tokenizer = read_tokenizer(t.path, t.dtype) if chosen.target == "vq" else None
    probe = DecoderProbe(square_grid(patches), test.size, chosen, tokenizer, bench.seed)
    progress = bench.progress("reconstruction_probe", chosen.epochs * len(train))

    def epoch(number: int) -> Iterator:
        cuts = random_cuts(train.size, chosen.scale, bench.seed, number)
        order = epoch_order(train, bench.seed, number)
        return _pairs(bench, train, cuts, order, chosen.batch_size, progress)

    losses, metrics, absent = fit(probe, epoch), {}, {}
    feature = "Z" if {"sparse", "spatial"} <= set(bench.encoder.gives) else "U"
    random = random_cuts(test.size, chosen.scale, bench.seed, TEST_KEY)
    for name, make in (("random crops", random), ("centre", centre_cuts(test))):
        metrics[f"{feature}, {name}"], absent = _judge(bench, probe, make, name)
    return Result(metrics, absent, {"losses": losses})


def _settings(config: ConfigDict) -> dict:
    chosen, t = protocol(config.eval), config.model.tokenizer
    tokenizer = {"tokenizer": identity(t.path), "tokenizer_dtype": t.dtype} if chosen.target == "vq" else {}
    images = {**ABOUT, "test": {"random crops": "as in training (released)", "centre": ABOUT["test"]}}
    return {**dataclasses.asdict(chosen), "schedule": "constant", "betas": (0.9, 0.999), "eps": 1e-8,
            "images": images, "departures": departures(chosen), **tokenizer}  # fmt: skip


RECONSTRUCTION_PROBE = Task(
    _measure, (), ("dense",), lambda data: {},
    _settings, networks=True,
)  # fmt: skip
