"""The published reconstruction probe on a data set: Z of STELLAR, U of other encoders."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from sparse_vis.data.records import in_batches, read_records
from sparse_vis.evals.bench import Bench
from sparse_vis.evals.columns import compared, quality
from sparse_vis.evals.dataset import Part
from sparse_vis.evals.decoder_probe import DecoderProbe, Protocol, fit
from sparse_vis.evals.features import square_grid
from sparse_vis.evals.networks import identity
from sparse_vis.evals.task import Result, Task
from sparse_vis.interop.maskgit import load_tokenizer
from sparse_vis.progress import Progress

read_tokenizer = functools.cache(load_tokenizer)


def protocol(e: ConfigDict) -> Protocol:
    """The published constants, with what config.eval.reconstruction_probe changes of them."""
    return Protocol(**{name: value for name, value in e.reconstruction_probe.items() if name != "target"})


def probed(bench: Bench, images: UInt8[np.ndarray, "N H W 3"]) -> Float[np.ndarray, "N n d"]:
    """The features that the decoder gets: Z = L S where the encoder factorizes, else U."""
    found = []
    for start in range(0, len(images), bench.batch):
        features = bench.encode(images[start : start + bench.batch], "sparse", "spatial", "dense")
        if {"sparse", "spatial"} <= features.keys():
            found.append(features["spatial"] @ features["sparse"])
        else:
            found.append(features["dense"])
    return np.concatenate(found)


def _epoch(bench: Bench, train: Part, number: int, batch_size: int, progress: Progress):
    """Shuffled images with their features: the test protocol's squares, the same ones every epoch."""
    order = np.random.default_rng((bench.seed, number)).permutation(train.indices)

    def load(indices: np.ndarray) -> np.ndarray:
        return read_records(train.source, indices, size=train.size, short_side=train.short_side).image

    for images in in_batches(load, order, batch_size, train.threads):
        yield probed(bench, images), images
        progress.add(len(images))


def _measure(bench: Bench, config: ConfigDict) -> Result:
    train, test = bench.data.parts["train"], bench.data.parts["test"]
    patches = probed(bench, next(test.first(1).batches(1)).image).shape[1]
    if patches == 1:
        return Result({}, {"reconstruction_probe": "it has one token for the whole image"})
    chosen, t = protocol(config.eval), config.model.tokenizer
    vq = config.eval.reconstruction_probe.target == "vq"
    tokenizer = read_tokenizer(t.path, t.dtype) if vq else None
    probe = DecoderProbe(square_grid(patches), test.size, chosen, tokenizer, bench.seed)
    progress = bench.progress("reconstruction_probe", chosen.epochs * len(train))
    losses = fit(probe, lambda number: _epoch(bench, train, number, chosen.batch_size, progress))
    kept: dict[str, list[np.ndarray]] = {}
    progress = bench.progress("reconstruction_probe, test images", len(test))
    for records in test.batches(bench.batch):
        reconstruction = probe.reconstruct(probed(bench, records.image))
        for name, column in compared(reconstruction, records.image, bench.networks).items():
            kept.setdefault(name, []).append(column)
        progress.add(len(records.image))
    columns = {name: np.concatenate(parts) for name, parts in kept.items()}
    metrics, absent = quality(columns, bench.networks, test)
    feature = "Z" if {"sparse", "spatial"} <= set(bench.encoder.gives) else "U"
    return Result({feature: metrics}, absent, {"losses": losses})


def _settings(config: ConfigDict) -> dict:
    target, path = config.eval.reconstruction_probe.target, config.model.tokenizer.path
    tokenizer = {"tokenizer": identity(path), "dtype": config.model.tokenizer.dtype} if target == "vq" else {}
    return {"target": target, **dataclasses.asdict(protocol(config.eval)), **tokenizer}


RECONSTRUCTION_PROBE = Task(
    _measure, (), ("dense",), lambda data: {},
    _settings, networks=True,
)  # fmt: skip
