"""Find, read and encode the images of a report."""

from __future__ import annotations

import contextlib
import functools
import os
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8
from ml_collections import ConfigDict
from PIL import Image, ImageOps

from sparse_vis import api
from sparse_vis.data.decode import decode
from sparse_vis.data.records import load_ahead, usable
from sparse_vis.data.sources import Source, announce, open_folder
from sparse_vis.evals.dataset import open_data
from sparse_vis.models.stellar import Stellar
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.names import escaped
from sparse_vis.runtime.progress import Progress
from sparse_vis.runtime.skipped import Skips

BATCH = 16


@dataclass(frozen=True)
class Found:
    """Images available to a report.

    Attributes:
        source: random-access records. indices: of those that may be used. origin: description in words.
    """

    source: Source
    indices: Int[np.ndarray, " N"]
    origin: str


def find_images(config: ConfigDict, folder: str | None, *, data_known: bool, max_pixels: int) -> Found:
    """The images of a folder, or else the test images of the run's data source, as for evaluations.

    Args:
        config: of the model. folder: value of --images. data_known: whether config.data is that of training.
        max_pixels: of an image in the folder; for the run's data, config.data.max_pixels applies.

    Raises:
        UserError: there are none; names the flag with which to give others.
    """
    if folder is not None:
        try:
            source = open_folder(folder, max_pixels)
            announce(source)
        except UserError as error:
            raise UserError(str(error).replace("--input", "--images")) from None
        return Found(source, np.arange(len(source)), f"folder {folder}")
    if not data_known:
        raise UserError("a released file does not say where its images are; give --images=FOLDER.")
    try:
        part = open_data(config).parts["test"]
    except UserError as error:
        raise UserError(
            f"{str(error).rstrip('.')}; or give the report other images: --images=FOLDER."
        ) from None
    place = f" at {config.data.path}" if config.data.path else ""
    share = f", {config.eval.holdout:.0%} held out" if config.eval.holdout else ""
    origin = f"{config.data.source}{place}, split {config.eval.test_split!r}{share}"
    return Found(part.source, part.indices, origin)


class Read(NamedTuple):
    """The N images of a report.

    Attributes:
        rows: indices in the source. pixels: uint8. names: escaped. skips: (name, reason) of skipped images.
    """

    rows: Int[np.ndarray, " N"]
    pixels: UInt8[np.ndarray, "N H W 3"]
    names: list[str]
    skips: Skips


def read_images(source: Source, rows: Int[np.ndarray, " N"], size: tuple[int, int], on_error: str) -> Read:
    """Read images: the largest centre crop with the aspect ratio of `size`, resized (bicubic).

    Args:
        source: random-access records. rows: indices. size: (height, width) in pixels.
        on_error: "stop" or "skip" at an unusable image.

    Raises:
        UserError: names the unusable image, or all are unusable.
    """

    def read(row: int) -> tuple[int, np.ndarray, str]:
        record = source[row]
        fitted = ImageOps.fit(Image.fromarray(decode(record)), size[::-1], Image.Resampling.BICUBIC)
        return row, np.asarray(fitted), escaped(record["name"])

    skips: Skips = []
    with contextlib.closing(load_ahead(read, rows.tolist(), os.cpu_count() or 1, ahead=BATCH)) as futures:
        found = list(usable(source, futures, on_error, skips))
    if not found:
        raise UserError(f"none of {len(rows)} images can be used; {skips[0][1].rstrip('.')}.")
    numbers, images, names = zip(*found, strict=True)
    return Read(np.array(numbers), np.stack(images), list(names), skips)


@dataclass(frozen=True)
class Encoded:
    """N encoded images.

    Attributes:
        S: (N, r, d). L: (N, n, r). cls: (N, 1, D), embeddings of the CLS head.
        winner: (N, r), every token's most likely prototype.
        embedding: (N, r, D), of the token head. normaliser: (N, r), log-sum-exp of the prototype logits.
    """

    S: Float[np.ndarray, "N r d"]
    L: Float[np.ndarray, "N n r"]
    cls: Float[np.ndarray, "N 1 D"]
    winner: Int[np.ndarray, "N r"]
    embedding: Float[np.ndarray, "N r D"]
    normaliser: Float[np.ndarray, "N r"]


@functools.partial(jax.jit, static_argnums=0)
def _encode(model: Stellar, params: dict, images: jax.Array, temperature: jax.Array) -> dict[str, jax.Array]:
    features = api.encode(model, params, images)

    def heads(m, S, cls):
        return m.sparse_head(S), m.cls_head(cls)

    embedding, cls = model.apply({"params": params}, features.sparse, features.cls, method=heads)
    logits = embedding @ params["sparse_head"]["prototypes"] / temperature
    return {
        "S": features.sparse, "L": features.spatial, "cls": cls, "winner": logits.argmax(axis=-1),
        "embedding": embedding, "normaliser": jax.nn.logsumexp(logits, axis=-1),
    }  # fmt: skip


def encode_all(
    model: Stellar, params: dict, images: UInt8[np.ndarray, "N H W 3"], temperature: float
) -> Encoded:
    """Encode images batch by batch and print progress.

    Args:
        model, params: from sparse_vis.load. images: (N, H, W, 3) uint8.
        temperature: of the student's softmax over prototypes.
    """
    parts, progress = [], Progress("encoding", len(images))
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH]
        # A smaller last batch is padded, so that the encoder compiles once.
        padded = np.pad(batch, [(0, BATCH - len(batch)), (0, 0), (0, 0), (0, 0)], mode="edge")
        found = jax.device_get(_encode(model, params, padded, temperature))
        parts.append({name: array[: len(batch)] for name, array in found.items()})
        progress.add(len(batch))
    return Encoded(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
