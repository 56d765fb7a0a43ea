"""Segmentation of a data set: both heads on U, Z and (S, L), all trained on the same fresh crops."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Num, UInt8
from ml_collections import ConfigDict

from sparse_vis.data.cut import labels_at
from sparse_vis.evals.features import Regrouped, square_grid
from sparse_vis.evals.maps.label_maps import centre_square, label_map
from sparse_vis.evals.maps.miou import batch_scores, mean_iou
from sparse_vis.evals.maps.published_images import (
    ABOUT,
    centre_cuts,
    departures,
    epoch_order,
    random_cuts,
    squares,
)
from sparse_vis.evals.maps.segmentation import LINEAR, PUBLISHED, Probe, Protocol
from sparse_vis.evals.maps.segmentation_head import Tokens, variants
from sparse_vis.evals.task import Bench, Result, Task

KEYS = ("dense", "sparse", "spatial")


def protocols(e: ConfigDict) -> dict[str, Protocol]:
    """Name of the head → its Protocol, as changed by config.eval.segmentation and config.eval.dtype."""
    s, both = e.segmentation, dict(epochs=e.segmentation.epochs, scale=e.segmentation.scale, dtype=e.dtype)
    return {
        "published": dataclasses.replace(PUBLISHED, batch=s.batch, **both),
        "linear": dataclasses.replace(LINEAR, **both),
    }


def encoded(bench: Bench, images: Num[np.ndarray, "N size size 3"]) -> dict[str, np.ndarray]:
    """The encoder's features for the heads, of at most one batch of images."""
    features = bench.encode(images, *KEYS)
    if "dense" in features and features["dense"].shape[1] == 1:
        del features["dense"]  # raw pixels: a single token for the whole image
    return features


class Heads:
    """Both heads on every input that an encoder gives, and the crops waiting for a full batch of each head.

    Args:
        protocols: name of the head → Protocol. classes: number of classes. seed: of the initial weights.
    """

    def __init__(self, protocols: dict[str, Protocol], classes: int, seed: int):
        self.protocols, self.classes, self.seed = protocols, classes, seed
        self.probes: dict[tuple[str, str], Probe] = {}
        self._waiting = {name: Regrouped(protocol.batch) for name, protocol in protocols.items()}

    def each(self, features: dict[str, np.ndarray], names: tuple[str, ...]):
        """Yield ((input, head), its Probe, its Tokens) for every input and the named heads."""
        for variant, tokens in variants(features).items():
            for name in names:
                if (variant, name) not in self.probes:
                    grid = square_grid((tokens.x if tokens.L is None else tokens.L).shape[1])
                    probe = Probe(grid, self.classes, self.protocols[name], self.seed)
                    self.probes[variant, name] = probe
                yield (variant, name), self.probes[variant, name], tokens

    def learn(self, features: dict[str, np.ndarray], labels: UInt8[np.ndarray, "B H W"]) -> None:
        """Add crops; each head makes a step whenever its batch is full."""
        for name, waiting in self._waiting.items():
            self._step(name, waiting.add({**features, "labels": labels}))

    def finish_epoch(self) -> None:
        """Make a last step with the remaining crops, which do not fill a batch."""
        for name, waiting in self._waiting.items():
            self._step(name, waiting.rest())

    def _step(self, name: str, groups) -> None:
        for group in groups:
            labels = group.pop("labels")
            for _, probe, tokens in self.each(group, (name,)):
                probe.learn(tokens, labels)


def _measure(bench: Bench, config: ConfigDict) -> Result:
    train, test = bench.data.parts["train"], bench.data.parts["test"]
    heads = Heads(protocols(config.eval), train.map_classes, bench.seed)
    chosen = config.eval.segmentation
    progress = bench.progress("segmentation", chosen.epochs * len(train))

    def crop(record, cut):
        return cut.labels(label_map(train, record))

    def whole(record, cut):
        labels = label_map(test, record)
        return cut.labels(labels), centre_square(labels, size=test.size, short_side=test.short_side)

    for epoch in range(chosen.epochs):
        cuts = random_cuts(train.size, chosen.scale, bench.seed, epoch)
        for images, labels in squares(train, cuts, epoch_order(train, bench.seed, epoch), bench.batch, crop):
            features = encoded(bench, images)
            if not variants(features):
                return Result({}, {"segmentation": "it has one token for the whole image"})
            heads.learn(features, np.stack(labels))
            progress.add(len(images))
        heads.finish_epoch()
    seen: dict[tuple[str, str], list[tuple[np.ndarray, np.ndarray]]] = {}
    for images, labels in squares(test, centre_cuts(test), np.arange(len(test)), bench.batch, whole):
        cut = np.stack([at_size for at_size, _ in labels])
        for pair, probe, tokens in heads.each(encoded(bench, images), tuple(heads.protocols)):
            _judge(probe, tokens, [own for _, own in labels])
            if probe.protocol.at == "logits":
                found = probe.predict(tokens, probe.grid), labels_at(cut, probe.grid)
                seen.setdefault(pair, []).append(found)
    return _result(heads, seen)


def _result(heads: Heads, seen: dict[tuple[str, str], list[tuple[np.ndarray, np.ndarray]]]) -> Result:
    """Scores from the confusion matrices and, for heads with loss at the logits, from predictions."""
    metrics, details = {}, {}
    for (variant, name), probe in heads.probes.items():
        mean, iou = mean_iou(probe.matrix)
        published = {}
        if (variant, name) in seen:
            predicted, labels = map(np.concatenate, zip(*seen[variant, name], strict=True))
            published = batch_scores(predicted, labels, heads.classes, probe.protocol.batch)
        metrics[f"{variant}, {name}"] = {**published, "miou": mean}
        details[f"{variant}, {name}"] = {"iou": iou.tolist()}
    return Result(metrics, details=details)


def _judge(probe: Probe, tokens: Tokens, labels: list[np.ndarray]) -> None:
    """Judge all images at once if their label maps have one size, else one by one."""
    if len({map.shape for map in labels}) == 1:
        return probe.judge(tokens, np.stack(labels))
    for i, map in enumerate(labels):
        L = None if tokens.L is None else tokens.L[i : i + 1]
        probe.judge(Tokens(tokens.x[i : i + 1], L), map[None])


def _settings(config: ConfigDict) -> dict:
    e, heads = config.eval, protocols(config.eval)
    return {
        "masks": e.masks, "mask_classes": e.mask_classes, "mask_shift": e.mask_shift,
        "heads": {name: dataclasses.asdict(head) for name, head in heads.items()},
        "dice_smooth": 1, "batch_norm_eps": 1e-5, "batch_norm_momentum": 0.1, "schedule": "constant",
        "betas": (0.9, 0.999), "eps": 1e-8, "ignore": 255,
        "images": {**ABOUT, "labels": "nearest-exact in cuts, nearest to the logits"},
        "macro_jaccard": "at the logits, of each batch, mean over batches",
        "miou": "at the label maps' resolution, one confusion matrix of all images",
        "departures": departures(heads["published"]),
    }  # fmt: skip


SEGMENTATION = Task(_measure, ("map",), ("dense", "spatial"), lambda data: {}, _settings)
