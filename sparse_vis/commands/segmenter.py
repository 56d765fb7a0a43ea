"""A segmenter fitted on images with label maps: the linear head on S and L that the evaluation trains."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from sparse_vis import api
from sparse_vis.commands.probe import HOLDOUT
from sparse_vis.data.own import OwnSource
from sparse_vis.data.records import SHORT_SIDE
from sparse_vis.data.sources import Source, as_source
from sparse_vis.evals.dataset import Part
from sparse_vis.evals.maps import published_images as published
from sparse_vis.evals.maps.label_maps import IGNORE, check_maps, label_map
from sparse_vis.evals.maps.segmentation import LINEAR, HeadInput, Probe, mean_iou, pixel_logits
from sparse_vis.interop import probe_file
from sparse_vis.models.classifier import Segmenter
from sparse_vis.models.stellar import Stellar
from sparse_vis.runtime import calls, paths
from sparse_vis.runtime.batches import Devices, run_in_batches
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.progress import Progress

EPOCHS = 80  # as the evaluation
FEWEST = 2  # images: one to fit, one to hold out


@calls.renamed(calls.OF_CALLS)
def segmenter(
    model: Stellar, params: dict, data: Any, masks: str | os.PathLike,
    classes: Sequence[str] | np.ndarray, *,
    epochs: int = EPOCHS, holdout: float = HOLDOUT, seed: int = 0, save: str | Path | None = None,
    batch: int = 16,
) -> tuple[Stellar, dict, dict[str, Any]]:  # fmt: skip
    """Fit a segmenter on images with label maps; a random share of them is held out to measure its mIoU.

    p(class | pixel) = sum over tokens t of L[pixel, t] softmax(S_t W + b), interpolated; W and b are trained.

    Args:
        model, params: as `load` returns them; the weights stay as they are.
        data: a folder, an address, or a list of paths or of dicts with `image` and `name`.
        masks: folder of 8-bit PNG label maps, NAME.png for the image NAME.*, where NAME is its path below the
            folder (of a list: below the folder that holds all of its images); 255 is ignored.
        classes: their names, from label 0 on; at least two and at most 255.
        epochs: passes over the images, which are cropped as in `probe`. seed: of all random draws.
        batch: images per step. holdout, save: as in `probe`.

    Returns:
        As `probe`; the report has `miou`.

    Raises:
        UserError: a missing or wrong label map, too few images, an argument that is out of range.
    """
    api.check_model("segmenter(model, params, images, masks, classes)", model, params)
    holdout, epochs = calls.share("holdout", holdout), calls.whole("epochs", epochs, 1)
    seed, batch = calls.whole("seed", seed, 0), calls.whole("batch", batch, 1)
    classes = calls.class_names(classes)
    if not 2 <= len(classes) <= IGNORE:
        what = f"a segmenter needs 2 to {IGNORE} classes, e.g. ('background', 'cat'), but `classes` has"
        raise UserError(f"{what} {len(classes)}; name those of the label maps, from 0 on.")
    folder = Path(paths.expanded(masks, "masks"))
    save = None if save is None else probe_file.place_to_write(save, "save", probe_file.SEGMENTER)
    source, size = _named(as_source(data)), model.encoder.image_size
    if len(source) < FEWEST:
        raise UserError(f"there is one image {source.about}; a segmenter needs two, one to hold out.")
    rows = np.arange(len(source))
    part = Part(source, rows, size, round(SHORT_SIDE * size), 4, folder, len(classes))
    check_maps(part)
    S, L, labels = _features(model, params, part, batch)
    held = min(max(1, round(holdout * len(S))), len(S) - 1)
    held, fitted = np.split(np.random.default_rng(seed).permutation(len(S)), [held])
    protocol = dataclasses.replace(LINEAR, epochs=epochs, dtype="float32", batch=min(batch, len(fitted)))
    head = Probe(model.grid(size, size), len(classes), protocol, seed)
    progress = Progress("segmenter", epochs * len(fitted), unit="rows")
    for epoch in range(epochs):
        order = np.random.default_rng((seed, epoch)).permutation(fitted)
        for start in range(0, len(order) - protocol.batch + 1, protocol.batch):
            some = np.sort(order[start : start + protocol.batch])
            head.learn(HeadInput(S[some], L[some]), labels[some])
        progress.add(len(order))
    matrices = [head.judge(HeadInput(S[row][None], L[row][None]), labels[row][None]) for row in held]
    miou, iou = mean_iou(np.sum(matrices, axis=(0, 1)))
    print(f"segmenter: mIoU {miou:.2%} on {len(held)} held-out images; fitted on {len(fitted)}", flush=True)
    (tensors,) = head.variables["params"].values()
    module = Segmenter(classes, S.shape[-1])
    report = {
        "miou": miou, "fitted": len(fitted),
        "iou": {name: None if np.isnan(x) else float(x) for name, x in zip(classes, iou, strict=True)},
        "held_out": len(held), "images": source.about, "weights_crc32": probe_file.weights_of(params),
    }  # fmt: skip
    if save is not None:
        probe_file.write_probe(save, module, tensors, report)
        print(f"wrote {save}; load it with sparse_vis.load(MODEL, segmenter={str(save)!r})", flush=True)
    return model.clone(segmenter=module), {**params, "segmenter": tensors}, report


def _named(source: Source) -> Source:
    """The source with names by which label maps are found: below their common folder, for listed paths."""
    if not isinstance(source, OwnSource):
        return source
    source = source.files() or source
    if source[0]["name"] == "#0":
        what = f"the images {source.about} have no names, by which label maps are found"
        raise UserError(f"{what}; give a folder, paths, or dicts with `image` and `name`.")
    return source


def _features(model: Stellar, params: dict, part: Part, batch: int) -> tuple[np.ndarray, ...]:
    """S, L and label maps at the encoder's size of all images of a part."""
    progress, found = Progress("features", len(part)), []
    call = functools.partial(_factors, model, Devices().everywhere(params))
    cuts = published.centre_cuts(part)
    squares = published.squares(part, cuts, part.indices, batch, lambda r, c: c.labels(label_map(part, r)))
    for images, labels in squares:
        S, L = run_in_batches(call, batch, images)
        found.append((S, L, np.stack(labels)))
        progress.add(len(images))
    return tuple(map(np.concatenate, zip(*found, strict=True)))


def _factors(model: Stellar, params: dict, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    features = api.encode(model, params, images)
    return features.sparse, features.spatial


@functools.partial(jax.jit, static_argnums=0)
def _segment(model: Stellar, params: dict, images: jax.Array) -> jax.Array:
    features = api.encode(model, params, images)
    logits = model.segmenter.apply({"params": params["segmenter"]}, features.sparse)
    grid = model.grid(*images.shape[1:3])
    size = tuple(model.patch * side for side in grid)
    return jnp.argmax(pixel_logits(logits, features.spatial, grid, size), axis=-1).astype(jnp.uint8)


@calls.renamed(calls.OF_CALLS)
def segment(model: Stellar, params: dict, images: Any, *, batch: int = 64) -> UInt8[np.ndarray, "B h w"]:
    """The class of every pixel, uint8, as its number in model.segmenter.classes.

    Args:
        model, params: as `segmenter` or `load` returns them.
        images, batch: as for `classify`; images of a folder, address or list are cropped as there.

    Returns:
        (B, h, w): h and w are the images' sizes, or those of the crop, rounded down to whole patches. Images
        are in the order given, those of a folder sorted by path.

    Raises:
        UserError: the model has no segmenter, or the images cannot be used.
    """
    api.check_model("segment(model, params, images)", model, params)
    if model.segmenter is None:
        raise UserError(
            "this model has no segmenter; fit one: model, params, report = sparse_vis.segmenter(model, "
            "params, images, masks, classes)."
        )
    return api.of_images(_segment, model, params, images, batch)
