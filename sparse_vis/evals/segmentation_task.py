"""Segmentation of a data set: both heads on U, Z and (S, L), trained side by side on the same fresh crops."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int, UInt8
from ml_collections import ConfigDict

from sparse_vis.data.decode import decode, to_square
from sparse_vis.data.records import BICUBIC, in_batches
from sparse_vis.evals.bench import Bench
from sparse_vis.evals.dataset import Part
from sparse_vis.evals.features import square_grid
from sparse_vis.evals.label_maps import centre_square, label_map, random_square
from sparse_vis.evals.miou import mean_iou
from sparse_vis.evals.segmentation import LINEAR, PUBLISHED, Probe, Protocol
from sparse_vis.evals.segmentation_head import Tokens, variants
from sparse_vis.evals.task import Result, Task

KEYS = ("dense", "sparse", "spatial")
Cuts = tuple[UInt8[np.ndarray, "B size size 3"], list[np.ndarray]]


def protocols(e: ConfigDict) -> dict[str, Protocol]:
    """Name → head, with the number of epochs that config.eval.segmentation says."""
    heads = {"published": PUBLISHED, "linear": LINEAR}
    return {name: dataclasses.replace(p, epochs=e.segmentation.epochs) for name, p in heads.items()}


def training_cuts(part: Part, seed: int, epoch: int, batch_size: int) -> Iterator[Cuts]:
    """Shuffled random squares of all images with their label maps; (seed, epoch, image) decide each."""

    def load(rows: Int[np.ndarray, " B"]) -> Cuts:
        cuts = []
        for row in rows:
            record = part.source[int(part.indices[row])]
            rng = np.random.default_rng((seed, epoch, int(row)))
            sides = dict(size=part.size, short_side=part.short_side)
            cuts.append(random_square(decode(record), label_map(part, record), rng=rng, **sides))
        images, labels = zip(*cuts, strict=True)
        return np.stack(images), list(labels)

    order = np.random.default_rng((seed, epoch)).permutation(len(part))
    return in_batches(load, order, batch_size, part.threads)


def test_cuts(part: Part, batch_size: int) -> Iterator[Cuts]:
    """All images as evaluations see them, with that part of their label maps at its own resolution."""

    def load(indices: Int[np.ndarray, " B"]) -> Cuts:
        images, labels, sides = [], [], dict(size=part.size, short_side=part.short_side)
        for index in indices:
            record = part.source[int(index)]
            images.append(to_square(decode(record), part.size, short_side=part.short_side, resample=BICUBIC))
            labels.append(centre_square(label_map(part, record), **sides))
        return np.stack(images), labels

    return in_batches(load, part.indices, batch_size, part.threads)


def tokens_of(bench: Bench, images: UInt8[np.ndarray, "N size size 3"]) -> dict[str, Tokens]:
    """What heads can classify of the encoder's features, in as many calls as its batch size asks for."""
    parts = [bench.encode(images[i : i + bench.batch], *KEYS) for i in range(0, len(images), bench.batch)]
    features = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    if "dense" in features and features["dense"].shape[1] == 1:
        del features["dense"]  # raw pixels: one token, which has no place
    return variants(features)


def _measure(bench: Bench, config: ConfigDict) -> Result:
    train, test = bench.data.parts["train"], bench.data.parts["test"]
    chosen, batch = protocols(config.eval), config.eval.segmentation.batch
    probes: dict[tuple[str, str], Probe] = {}

    def each(images):
        for variant, tokens in tokens_of(bench, images).items():
            for name, protocol in chosen.items():
                if (variant, name) not in probes:
                    grid = square_grid((tokens.x if tokens.L is None else tokens.L).shape[1])
                    probes[variant, name] = Probe(grid, train.map_classes, protocol, bench.seed)
                yield probes[variant, name], tokens

    progress = bench.progress("segmentation", config.eval.segmentation.epochs * len(train))
    for epoch in range(config.eval.segmentation.epochs):
        for images, labels in training_cuts(train, bench.seed, epoch, batch):
            for probe, tokens in each(images):
                probe.learn(tokens, np.stack(labels))
            progress.add(len(images))
        if not probes:
            return Result({}, {"segmentation": "it has one token for the whole image"})
    for images, labels in test_cuts(test, bench.batch):
        for probe, tokens in each(images):
            _judge(probe, tokens, labels)
    scores = {pair: mean_iou(probe.matrix) for pair, probe in probes.items()}
    return Result(
        {f"{variant}, {name}": {"miou": mean} for (variant, name), (mean, _) in scores.items()},
        details={f"{variant}, {name}": {"iou": iou.tolist()} for (variant, name), (_, iou) in scores.items()},
    )


def _judge(probe: Probe, tokens: Tokens, labels: list[np.ndarray]) -> None:
    """All at once where the label maps have one size, else one by one."""
    if len({map.shape for map in labels}) == 1:
        return probe.judge(tokens, np.stack(labels))
    for i, map in enumerate(labels):
        L = None if tokens.L is None else tokens.L[i : i + 1]
        probe.judge(Tokens(tokens.x[i : i + 1], L), map[None])


SEGMENTATION = Task(
    _measure, ("map",), ("dense", "spatial"), lambda data: {},
    lambda config: {
        "masks": config.eval.masks, "mask_classes": config.eval.mask_classes,
        "batch": config.eval.segmentation.batch,
        "heads": {name: dataclasses.asdict(p) for name, p in protocols(config.eval).items()},
    },
)  # fmt: skip
