"""A segmenter from S and L, fitted on images with label maps: the linear head on (S, L) of the evaluation."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from sparse_vis import api
from sparse_vis.commands.probe import HOLDOUT, words
from sparse_vis.data.records import SHORT_SIDE
from sparse_vis.data.sources import as_source
from sparse_vis.evals.dataset import Part
from sparse_vis.evals.maps import published_images as published
from sparse_vis.evals.maps.label_maps import check_maps, label_map
from sparse_vis.evals.maps.segmentation import LINEAR, HeadInput, Probe, mean_iou, pixel_logits
from sparse_vis.interop import probe_file
from sparse_vis.models.classifier import Segmenter
from sparse_vis.models.stellar import Stellar
from sparse_vis.runtime import paths
from sparse_vis.runtime.batches import run_in_batches
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.progress import Progress

EPOCHS = 80  # as the evaluation
FEWEST = 2  # images: one to fit, one to hold out


def segmenter(
    model: Stellar, params: dict, data: Any, masks: str | Path, classes: Sequence[str], *,
    epochs: int = EPOCHS, holdout: float = HOLDOUT, seed: int = 0, save: str | Path | None = None,
    batch: int = 16,
) -> tuple[Stellar, dict, dict[str, Any]]:  # fmt: skip
    """Fit a segmenter on images with label maps; a random share of them is held out to measure its mIoU.

    p(class | pixel) = sum over tokens t of L[pixel, t] softmax(S_t W + b), interpolated; W and b are trained.

    Args:
        model, params: as `load` returns them; the weights stay as they are.
        data: images, as for `probe`; their names name the maps.
        masks: folder of 8-bit PNG label maps, NAME.png for the image NAME.*; 255 is ignored.
        classes: their names, from label 0 on.
        epochs, seed, batch: passes over the images, which are cropped as in `probe`; of all random draws;
            images per step. holdout, save, returned values: as in `probe`; the report has `miou`.

    Raises:
        UserError: a missing or wrong label map, too few images, an argument that is out of range.
    """
    if not 0 < holdout < 1 or epochs < 1 or seed < 0 or batch < 1 or len(classes) < 2:
        raise UserError(
            f"holdout={holdout}, epochs={epochs}, seed={seed}, batch={batch} or {len(classes)} classes is "
            "out of range; holdout lies between 0 and 1, classes are two or more, and seed is 0 or more."
        )
    source, size = as_source(data), model.encoder.image_size
    if len(source) < FEWEST:
        raise UserError(f"there is one image {words(source)}; a segmenter needs two, one to hold out.")
    folder = Path(paths.local(masks, "masks"))
    rows = np.arange(len(source))
    part = Part(source, rows, size, round(SHORT_SIDE * size), 4, folder, len(classes))
    with _in_words_of_arguments():
        check_maps(part)
        S, L, labels = _features(model, params, part, batch)
    held = max(1, round(holdout * len(S)))
    held, fitted = np.split(np.random.default_rng(seed).permutation(len(S)), [held])
    protocol = dataclasses.replace(LINEAR, epochs=epochs, dtype="float32", batch=min(batch, len(fitted)))
    head = Probe(model.grid(size, size), len(classes), protocol, seed)
    progress = Progress("segmenter", epochs * len(fitted))
    for epoch in range(epochs):
        order = np.random.default_rng((seed, epoch)).permutation(fitted)
        for start in range(0, len(order) - protocol.batch + 1, protocol.batch):
            some = np.sort(order[start : start + protocol.batch])
            head.learn(HeadInput(S[some], L[some]), labels[some])
        progress.add(len(order))
    for row in held:
        head.judge(HeadInput(S[row][None], L[row][None]), labels[row][None])
    miou, iou = mean_iou(head.matrix)
    print(f"segmenter: mIoU {miou:.2%} on {len(held)} held-out images; fitted on {len(fitted)}", flush=True)
    (tensors,) = head.variables["params"].values()
    module = Segmenter(tuple(classes), S.shape[-1])
    report = {
        "miou": miou, "iou": [None if np.isnan(x) else float(x) for x in iou], "fitted": len(fitted),
        "held_out": len(held), "images": words(source), "weights_crc32": probe_file.weights_of(params),
    }  # fmt: skip
    if save is not None:
        path = probe_file.place_of(Path(paths.local(save, "save")), probe_file.SEGMENTER)
        probe_file.write_probe(path, module, tensors, report)
    return model.clone(segmenter=module), {**params, "segmenter": tensors}, report


def _features(model: Stellar, params: dict, part: Part, batch: int) -> tuple[np.ndarray, ...]:
    """S, L and label maps at the encoder's size of all images of a part."""
    progress, found = Progress("features", len(part)), []
    cuts = published.centre_cuts(part)
    squares = published.squares(
        part, cuts, part.indices, batch, lambda r, cut: cut.labels(label_map(part, r))
    )
    for images, labels in squares:
        S, L = run_in_batches(lambda x: _factors(model, params, x), batch, images)
        found.append((S, L, np.stack(labels)))
        progress.add(len(images))
    return tuple(map(np.concatenate, zip(*found, strict=True)))


def _factors(model: Stellar, params: dict, images: np.ndarray) -> tuple[jax.Array, jax.Array]:
    features = api.encode(model, params, images)
    return features.sparse, features.spatial


@contextlib.contextmanager
def _in_words_of_arguments() -> Iterator[None]:
    """Errors about label maps name the arguments of `segmenter` instead of settings."""
    try:
        yield
    except UserError as error:
        text = str(error).replace("config.eval.mask_classes=", "the number of classes is ")
        raise UserError(text.replace("config.eval.masks", "masks")) from None


@functools.partial(jax.jit, static_argnums=0)
def _segment(model: Stellar, params: dict, images: jax.Array) -> jax.Array:
    features = api.encode(model, params, images)
    logits = model.segmenter.apply({"params": params["segmenter"]}, features.sparse)
    grid = model.grid(*images.shape[1:3])
    size = tuple(model.patch * side for side in grid)
    return jnp.argmax(pixel_logits(logits, features.spatial, grid, size), axis=-1).astype(jnp.uint8)


def segment(model: Stellar, params: dict, images: np.ndarray) -> UInt8[np.ndarray, "B h w"]:
    """The class of every pixel, uint8, as a number of model.segmenter.classes.

    Args:
        model, params: as `segmenter` returns them, or `load` where it was saved. images: as for `encode`.

    Returns:
        (B, h, w): h and w are the images' sizes rounded down to whole patches.

    Raises:
        UserError: the model has no segmenter, or the images cannot be used.
    """
    if getattr(model, "segmenter", None) is None:
        raise UserError(
            "this model has no segmenter; fit one: model, params, report = sparse_vis.segmenter(model, "
            "params, images, masks, classes)."
        )
    return np.asarray(_segment(model, params, api.checked(images, model.patch)))
