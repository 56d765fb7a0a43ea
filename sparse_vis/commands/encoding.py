"""Encode images to columns of features, for extractions."""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from sparse_vis.api import encode
from sparse_vis.data.records import Loaded
from sparse_vis.models.stellar import Stellar
from sparse_vis.runtime.progress import Progress
from sparse_vis.train.mesh import BATCH, make_mesh

Columns = dict[str, list | np.ndarray]


def make_encoder(
    model: Stellar, params: dict, batch: int, outputs: tuple[str, ...], dtype: str
) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """A function: images (m <= batch, H, W, 3) uint8 -> {output: (m, tokens, width) of `dtype`}.

    The batch is split over all devices of this process. Other processes encode other images, independently.

    Args:
        model, params: from sparse_vis.load. batch: images per call; rounded up to a multiple of the devices.
        outputs: names of Features. dtype: of the result; the computation is float32.
    """
    devices = jax.local_devices()
    mesh = make_mesh((-1, 1), devices)
    params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    batch = -(-batch // len(devices)) * len(devices)

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        # A smaller last batch is padded with copies, so that the encoder compiles once.
        padded = np.pad(images, [(0, batch - len(images)), (0, 0), (0, 0), (0, 0)], mode="edge")
        features = encode(model, params, jax.device_put(padded, NamedSharding(mesh, BATCH)))
        found = jax.device_get({name: getattr(features, name) for name in outputs})
        with np.errstate(over="ignore"):  # write_shard refuses infinities
            return {name: np.asarray(array[: len(images)], dtype) for name, array in found.items()}

    return run


def describe(checkpoint: str, model: Stellar, params: dict, outputs: tuple[str, ...]) -> dict:
    """The part of the manifest that describes the model and its features.

    Args:
        checkpoint: from which it was loaded. model, params: from sparse_vis.load. outputs: names of Features.
    """
    size, checksum = model.encoder.image_size, 0
    image = jax.ShapeDtypeStruct((1, size, size, 3), np.uint8)
    features = jax.eval_shape(functools.partial(encode, model), params, image)
    for leaf in jax.tree.leaves(params):  # distinguishes models with the same step number
        checksum = zlib.crc32(np.ascontiguousarray(leaf), checksum)
    return {
        "checkpoint": checkpoint,
        "step": int(step) if (step := Path(checkpoint).name).isdigit() else None,  # None: not from our runs
        "weights_crc32": checksum,
        "image_size": size,
        "grid": list(model.grid(size, size)),
        "outputs": {name: list(getattr(features, name).shape[1:]) for name in outputs},
    }


def encode_all(
    images: Iterator[Loaded],
    batch: int,
    encoder: Callable[[np.ndarray], dict[str, np.ndarray]],
    progress: Progress,
) -> Iterator[Columns]:
    """Yield columns of up to `batch` images: name, height, width and the encoder's outputs."""
    while chunk := list(islice(images, batch)):
        names, heights, widths, pixels = zip(*chunk, strict=True)
        features = encoder(np.stack(pixels))
        yield {"name": list(names), "height": list(heights), "width": list(widths), **features}
        progress.add(len(chunk))
