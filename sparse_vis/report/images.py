"""Find, read and encode the images of a report, and find out whether the model was trained on them."""

from __future__ import annotations

import filecmp
import functools
import os
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8
from ml_collections import ConfigDict

from sparse_vis import api
from sparse_vis.build import build_source
from sparse_vis.data.address import splits_apart
from sparse_vis.data.compose import ComposedSource
from sparse_vis.data.decode import decode, fitted
from sparse_vis.data.folder import FilesSource, FolderSource
from sparse_vis.data.packed import PackedSource
from sparse_vis.data.pictures import PictureSource
from sparse_vis.data.records import images_ahead, none_usable
from sparse_vis.data.sources import Source, announce, open_input
from sparse_vis.data.tfds import TfdsSource
from sparse_vis.evals.dataset import open_data
from sparse_vis.models.stellar import Stellar
from sparse_vis.runtime.batches import Devices, run_in_batches
from sparse_vis.runtime.errors import UserError, reworded
from sparse_vis.runtime.names import escaped
from sparse_vis.runtime.paths import as_path, in_bucket
from sparse_vis.runtime.progress import Progress
from sparse_vis.runtime.skipped import Skips
from sparse_vis.types import Tokens

BATCH = 16
UNKNOWN = "Images of which it is not known whether the model was trained on them"
Rows = Sequence[int] | np.ndarray


class Read(NamedTuple):
    """The images of a report."""

    rows: Int[np.ndarray, " N"]  # their numbers in the source
    pixels: UInt8[np.ndarray, "N H W 3"]
    names: list[str]  # escaped
    labels: Int[np.ndarray, " N"]  # -1 without a label
    skips: Skips


class Encoded(NamedTuple):
    """The factors of images, and the embeddings of S and CLS in the prototype heads."""

    S: Float[np.ndarray, "N r d"]
    L: Float[np.ndarray, "N n r"]
    cls: Float[np.ndarray, "N 1 D"]
    embedding: Float[np.ndarray, "N r D"]
    winner: Int[np.ndarray, "N r"]  # each token's most likely prototype
    normaliser: Float[np.ndarray, "N r"]  # log-sum-exp of its prototype logits


def find_images(
    config: ConfigDict,
    images: str | None,
    split: str | None,
    data_dir: str | None,
    *,
    data_known: bool,
    max_pixels: int,
) -> tuple[Source, Int[np.ndarray, " N"], str]:
    """The images of --images; without it, the test images of the run's data, as for evaluations.

    Args:
        images, split, data_dir, max_pixels: as for `open_input`.
        data_known: whether config.data is that of training.

    Returns:
        A source, the rows of it that may be used, and a description in words.

    Raises:
        UserError: there are no images; the sentence names --images.
    """
    if images is not None:
        with reworded(lambda sentence: sentence.replace("--input", "--images")):
            source = open_input(images, split, data_dir, max_pixels)
            announce(source)
        kind = "folder " if as_path(images).is_dir() else ""
        return source, np.arange(len(source)), f"{kind}{images}"
    for flag, value in (("--split", split), ("--data-dir", data_dir)):
        if value is not None:
            raise UserError(f"{flag}={value} belongs to --images; give both, or leave it out.")
    if not data_known:
        raise UserError("a released file does not say where its images are; give --images=FOLDER.")
    with reworded(lambda sentence: f"{sentence.rstrip('.')}; or give other images: --images=FOLDER."):
        part = open_data(config).parts["test"]
    place = f" at {config.data.path}" if config.data.path else ""
    share = f", {config.eval.holdout:.0%} held out" if config.eval.holdout else ""
    origin = f"{config.data.source}{place}, split {config.eval.test_split!r}{share}"
    return part.source, part.indices, origin


def read_images(
    source: Source, rows: Int[np.ndarray, " N"], size: tuple[int, int], on_error: str, letterbox: bool = False
) -> Read:
    """Read images at `size` (height, width), as `data.decode.fitted`.

    Raises UserError if an image is unusable and on_error is "stop", or if all are unusable.
    """

    def read(row: int) -> tuple[int, np.ndarray, str, int]:
        record = source[row]
        pixels = fitted(decode(record), size, letterbox=letterbox)
        return row, pixels, escaped(record["name"]), record.get("label", -1)

    how = dict(threads=os.cpu_count() or 1, ahead=BATCH, on_error=on_error)
    with images_ahead(source, read, rows.tolist(), **how) as take:
        images, skips = take(len(rows))
        found = list(images)
    if not found:
        raise none_usable(len(rows), skips)
    numbers, images, names, labels = zip(*found, strict=True)
    return Read(np.array(numbers), np.stack(images), list(names), np.array(labels), skips)


def encode_all(
    model: Stellar, params: dict, images: UInt8[np.ndarray, "N H W 3"], temperature: float
) -> Encoded:
    """Encode images in batches and print progress; `temperature`: of the softmax over prototypes."""
    encode = functools.partial(_encode, model, Devices().everywhere(params), temperature)
    return run_in_batches(encode, BATCH, images, progress=Progress("encoding", len(images)))


@functools.partial(jax.jit, static_argnums=0)
def _encode(model: Stellar, params: dict, temperature: jax.Array, images: jax.Array) -> Encoded:
    out = api.encode(model, params, images)
    found = model.apply({"params": params}, Tokens(out.cls, out.sparse, out.dense), method="heads")
    logits = found.S @ found.S_prototypes / temperature
    normaliser = jax.nn.logsumexp(logits, axis=-1)
    return Encoded(out.sparse, out.spatial, found.cls, found.S, logits.argmax(axis=-1), normaliser)


def name_images(config: ConfigDict | None, source: Source, rows: Rows) -> str:
    """In words, with the reason, whether images are training images, held out, both, or this is not known.

    `config`: that of the training; None if it is not known.
    """
    if config is None:
        return f"{UNKNOWN} (a released file does not say on which it was)"
    try:
        trained, why = _trained_on(config, source, rows)
    except UserError as error:
        trained, why = None, str(error).rstrip(".")
    if trained is None:
        return f"{UNKNOWN} ({why})"
    if trained:
        return "Training images" if trained == len(rows) else f"{trained} of {len(rows)} are training images"
    started = f"; what the weights of {config.init} had seen is not known" if config.init else ""
    return f"Held-out images ({why}{started})"


def _trained_on(config: ConfigDict, source: Source, rows: Rows) -> tuple[int | None, str]:
    """Number of rows that are training images (None if it is not known), and the reason."""
    d = config.data
    if isinstance(source, ComposedSource) and source.kind == d.source:
        return len(rows) * (source.split == d.split), f"the model was trained on split {d.split!r}"
    if d.source == "scenes":
        return 0, "the model was trained on generated scenes"
    training = build_source(config, d.split)
    match source, training:
        case FilesSource(), PictureSource():
            kinds = [os.path.join(training.path, kind, d.split) for kind in ("photographs", "objects")]
            why = f"none of them, by name and content, is in {' or '.join(kinds)}"
            return sum(_shared_files(source, rows, FolderSource(folder)) for folder in kinds), why
        case FilesSource(), FilesSource():
            why = f"none of them, by name and content, is in {training.path}"
            return _shared_files(source, rows, training), why
        case FilesSource(), PackedSource() if source.images_sha256 != training.images_sha256:
            return None, f"the packed folder {training.path} was not searched for single images"
        case FilesSource(), PackedSource():
            return len(rows), ""
        case PackedSource(), PackedSource():
            same = os.path.realpath(source.path) == os.path.realpath(training.path)
            same = same or source.images_sha256 == training.images_sha256
            return len(rows) * same, f"the model was trained on another packed folder, {training.path}"
        case TfdsSource(), TfdsSource() if source.name != training.name:
            return 0, f"the model was trained on {training.name}"
        case TfdsSource(), TfdsSource() if source.split == training.split:
            return len(rows), ""
        case TfdsSource(), TfdsSource() if not splits_apart(source.split, training.split):
            return None, f"the splits {source.split!r} and {training.split!r} may overlap"
        case TfdsSource(), TfdsSource():
            return 0, f"the model was trained on split {training.split!r}"
        case _ if repr(source) == repr(training) and source.images_sha256 == training.images_sha256:
            return len(rows), ""
    return None, f"the model was trained on {d.source}"


def _alike(one: str, other: str) -> bool:
    if in_bucket(one) or in_bucket(other):
        return as_path(one).read_bytes() == as_path(other).read_bytes()
    return filecmp.cmp(one, other, shallow=False)


def _shared_files(source: FilesSource, rows: Rows, training: FilesSource) -> int:
    """Number of images that are training images: the same file, or a copy with the same name."""
    alike = defaultdict(set)
    for name in training.names:
        alike[os.path.basename(name)].add(os.path.join(training.path, name))
    count = 0
    for row in rows:
        path = os.path.join(source.path, source.names[int(row)])
        own = os.path.basename(path), os.path.basename(os.path.realpath(path))  # it may be a link
        others = set().union(*(alike.get(name, ()) for name in own))
        count += any(_alike(path, other) for other in others)
    return count
