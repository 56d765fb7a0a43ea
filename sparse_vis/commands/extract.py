"""Features of many images as Parquet shards: `python -m sparse_vis extract --help`."""

import argparse
import functools
import signal
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sparse_vis.api import assemble, encode
from sparse_vis.commands import outputs, shards
from sparse_vis.config.ranges import SIDE
from sparse_vis.data import records
from sparse_vis.data.folder import FolderSource, sha256_of, stamp
from sparse_vis.data.records import SHORT_SIDE, LoadedImage, images_ahead, known_labels, load_image
from sparse_vis.data.sources import Source, announce, open_input
from sparse_vis.interop.load import read_model
from sparse_vis.models.stellar import Stellar
from sparse_vis.runtime.batches import Devices, run_in_batches
from sparse_vis.runtime.checksums import crc32
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.paths import AnyPath
from sparse_vis.runtime.progress import Progress
from sparse_vis.runtime.tools import Parser, positive

OUTPUTS = ("cls", "sparse", "dense", "spatial", "lowrank")
KEPT = "complete shards"
ToColumns = Callable[[list[LoadedImage]], shards.Columns]


def extract(given: argparse.Namespace) -> None:
    """Write features of all images of a source, or continue an interrupted call; `given`: the tool's flags.

    Each of n processes writes every n-th shard, with its own devices; process 0 completes the folder. Raises
    UserError if there are no images or no checkpoint, an image cannot be used, or the output folder holds
    another extraction.
    """
    if given.resize is not None and given.resize > SIDE:
        raise UserError(f"--resize={given.resize} is too large; it must be at most {SIDE}.")
    source = open_input(given.images, given.split, given.data_dir, given.max_pixels)
    found = read_model(given.checkpoint, given.name)
    checkpoint = str(found.step or given.checkpoint)  # the step folder, as training may continue meanwhile
    model, params = assemble(found, checkpoint)
    size = model.encoder.image_size
    resize = given.resize or round(SHORT_SIDE * size)
    if resize < size:
        raise UserError(f"--resize={resize} is smaller than the model's image size; use {size} or more.")
    if given.letterbox and given.resize:
        raise UserError("--resize is for the centre crop; leave out either --resize or --letterbox.")
    names = tuple(name for name in OUTPUTS if name in given.outputs)
    manifest = about_model(checkpoint, model, params, names)
    manifest |= {"images": len(source), "images_sha256": source.images_sha256}
    manifest |= {"dtype": given.dtype, "resize": resize, "shard_size": given.shard_size}
    if given.letterbox:  # else left out, as by earlier versions, whose extractions can be continued
        manifest |= {"resize": 0, "letterbox": True}
    if records.has_labels(source):
        manifest |= {"classes": list(source.classes), "labels_sha256": labels_sha256(source)}
    process, processes = jax.process_index(), jax.process_count()
    if process == 0:
        announce(source)
    shards.open_output(given.output, manifest, first=process == 0)
    planned = shards.plan(given.output, len(source), given.shard_size)
    # Every process checks all shards, so that none waits for another.
    shards.drop_changed({path: stamp(source, rows) for path, rows in planned.items() if path.exists()})
    # By shard number, so that processes need not agree on which shards are left to write.
    mine = {path: rows for k, (path, rows) in enumerate(planned.items()) if k % processes == process}
    encoder = make_encoder(model, params, given.batch, names, given.dtype)
    write_missing(given, source, mine, manifest, encoder)
    shards.wait_for(list(planned), "shards")
    if process == 0:
        rows, skipped = shards.finish(given.output, manifest, planned)
        print(f"{given.output}: {rows} images in {len(planned)} shards, {skipped} skipped", flush=True)


def about_model(checkpoint: str, model: Stellar, params: dict, names: tuple[str, ...]) -> dict[str, Any]:
    """The part of the manifest that describes the model, loaded from `checkpoint`, and its features."""
    size = model.encoder.image_size
    image = jax.ShapeDtypeStruct((1, size, size, 3), np.uint8)
    features = jax.eval_shape(functools.partial(encode, model), params, image)
    return {
        "checkpoint": checkpoint,
        "step": int(step) if (step := Path(checkpoint).name).isdigit() else None,  # None: not from our runs
        "weights_crc32": crc32(params),  # distinguishes models with the same step number
        "image_size": size,
        "grid": list(model.grid(size, size)),
        "outputs": {name: list(getattr(features, name).shape[1:]) for name in names},
    }


def labels_sha256(source: Source) -> str:
    """Checksum of the names of classes, and of the labels if they are known and do not follow from paths."""
    labels = None if isinstance(source, FolderSource) else known_labels(source)
    return sha256_of([*source.classes, *([] if labels is None else map(str, labels))])


def make_encoder(model: Stellar, params: dict, batch: int, names: tuple[str, ...], dtype: str) -> ToColumns:
    """A function from images to columns, with the features `names` in `dtype`; the computation is float32.

    Batches are split over all devices of this process; other processes encode other images.
    """
    params = Devices().everywhere(params)

    def call(images: jax.Array) -> dict[str, jax.Array]:
        features = encode(model, params, images)
        return {name: getattr(features, name) for name in names}

    def columns(images: list[LoadedImage]) -> shards.Columns:
        features = run_in_batches(call, batch, np.stack([image.pixels for image in images]))
        with np.errstate(over="ignore"):  # write_shard refuses infinities
            features = {name: np.asarray(array, dtype) for name, array in features.items()}
        about = {key: [getattr(x, key) for x in images] for key in ("name", "height", "width", "label")}
        return about | features

    return columns


def write_missing(
    given: argparse.Namespace,
    source: Source,
    planned: dict[AnyPath, range],
    manifest: dict,
    encoder: ToColumns,
) -> None:
    """Check the shards that exist, then write those that are missing."""
    settings = shards.fingerprint(manifest)
    schema = shards.make_schema(manifest["outputs"], given.dtype, "classes" in manifest)
    todo = {path: rows for path, rows in planned.items() if not path.exists()}
    left, total = [index for rows in todo.values() for index in rows], sum(map(len, planned.values()))
    checked = Progress("checking finished shards", total - len(left))
    for path in [path for path in planned if path not in todo]:  # report damage now, not at the end
        shards.read_shard(path, len(planned[path]), settings, content=True)
        checked.add(len(planned[path]))
    process, processes = jax.process_index(), jax.process_count()
    what = "features" if processes == 1 else f"features, process {process} of {processes}"
    progress = Progress(what, total, total - len(left))
    image = dict(size=manifest["image_size"], short_side=manifest["resize"], letterbox=given.letterbox)
    load = functools.partial(load_image, source, **image)

    def encoded(images: Iterator[LoadedImage]) -> Iterator[shards.Columns]:
        while batch := list(islice(images, given.batch)):
            yield encoder(batch)
            progress.add(len(batch))

    how = dict(threads=given.threads, ahead=2 * given.batch, on_error=given.on_error)
    with images_ahead(source, load, left, **how) as take:
        for path, rows in todo.items():
            images, skipped = take(len(rows))
            about = {"settings": settings, **stamp(source, rows)}
            shards.write_shard(path, schema, encoded(images), skipped, about)
            if skipped:
                progress.add(len(skipped))


def _outputs(text: str) -> tuple[str, ...]:
    names = text.split(",")
    if unknown := [name for name in names if name not in OUTPUTS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is unknown; choose from {','.join(OUTPUTS)}")
    return tuple(names)


def parser() -> Parser:
    parser = Parser(
        description="Write features of all images of a folder or of another source as Parquet "
        "shards (docs/extraction.md). The same command continues an interrupted extraction."
    )
    add = parser.add_argument
    add("--checkpoint")
    add("--name")
    add("--input", dest="images")
    add("--split")
    add("--data-dir", "--data_dir")
    add("--output", help="folder for the shards: a new one, or an unfinished one to continue")
    named = f"what to write, comma-separated: {','.join(OUTPUTS)} (%(default)s)"
    add("--outputs", type=_outputs, default="cls,sparse,spatial", help=named)
    computed = "dtype of the written features; computation is in float32 (%(default)s)"
    add("--dtype", choices=tuple(shards.DTYPES), default="float32", help=computed)
    short = "short side in pixels before the centre crop (default: 256/224 of the model's image size)"
    add("--resize", type=positive, help=short)
    add("--letterbox")
    add("--batch", type=positive, default=64, help="images per call of the encoder (%(default)s)")
    for flag in ("--shard-size", "--threads", "--on-error", "--max-pixels"):
        add(flag)
    several = "run as one of several processes: auto, or HOST:PORT,PROCESSES,PROCESS (docs/pods.md)"
    add("--distributed", help=several)
    return parser


def main() -> None:
    given = parser().parse_args()
    if not given.distributed:
        with outputs.writing(given.output, "extraction", KEPT):
            return extract(given)
    from sparse_vis.train import distributed

    with distributed.joined(given.distributed, 0):
        # jax.distributed handles SIGTERM by waiting for a training step; here it should end the process.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with outputs.writing(given.output, "extraction", KEPT, distributed.held):
            extract(given)
