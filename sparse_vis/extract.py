"""Features of a folder of images as Parquet shards: `python -m sparse_vis.extract --help`."""

from __future__ import annotations

import argparse
import datetime
import functools
import hashlib
import os
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from sparse_vis.data.ahead import ON_ERROR, Loaded, load_ahead, load_image, usable
from sparse_vis.data.sources import open_folder
from sparse_vis.errors import UserError, command_line
from sparse_vis.shards import (
    DTYPES,
    SKIPPED,
    make_schema,
    open_output,
    survey,
    write_shard,
    write_text,
)

OUTPUTS = ("cls", "sparse", "dense", "spatial", "lowrank")
REPORT_SECONDS = 10.0


class Progress:
    """Prints images done, images/s and ETA; the rate leaves out the first batch, which compiles.

    Args:
        total: images of the extraction. done: of them, in shards that were already there.
    """

    def __init__(self, total: int, done: int):
        self.total, self.done, self.skipped, self.counted = total, done, 0, 0
        self.began, self.printed = None, time.perf_counter()

    def add(self, images: int, skipped: int = 0, *, show: bool = False) -> None:
        """Count images that were encoded or skipped; prints if asked to, or if the last line is old."""
        now = time.perf_counter()
        self.done, self.skipped = self.done + images + skipped, self.skipped + skipped
        if self.began is None:
            self.began = now
        else:
            self.counted += images + skipped
        if show or now - self.printed >= REPORT_SECONDS:
            self.printed = now
            rate = self.counted / max(now - self.began, 1e-9)
            left = self.total - self.done
            eta = datetime.timedelta(seconds=round(left / rate)) if rate else "unknown"
            note = f"  {self.skipped} skipped" if self.skipped else ""
            print(f"{self.done}/{self.total} images  {rate:.1f} images/s  ETA {eta}{note}", flush=True)


def make_encoder(model, params: dict, batch: int, outputs: tuple[str, ...], dtype: str):
    """images (m <= batch, H, W, 3) uint8 -> {output: (m, tokens, width) of `dtype`}, split over all devices.

    Args:
        model, params: of sparse_vis.load. batch: images per call; rounded up to whole devices.
        outputs: of OUTPUTS. dtype: of DTYPES.
    """
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    from sparse_vis.api import encode
    from sparse_vis.train.mesh import global_batch, make_mesh

    mesh = make_mesh((-1, 1))
    params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    batch = -(-batch // jax.device_count()) * jax.device_count()

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        # A last, smaller batch is filled up with copies, so that the encoder compiles once.
        padded = np.pad(images, [(0, batch - len(images)), (0, 0), (0, 0), (0, 0)], mode="edge")
        features = encode(model, params, global_batch(mesh, padded))
        found = jax.device_get({name: getattr(features, name) for name in outputs})
        with np.errstate(over="ignore"):  # write_shard refuses infinities
            return {name: np.asarray(array[: len(images)], dtype) for name, array in found.items()}

    return run


def describe(checkpoint: str, model, params: dict, names: list[str], outputs: tuple[str, ...]) -> dict:
    """The manifest's part that says which model read which images.

    Args:
        checkpoint: what was loaded. model, params: of sparse_vis.load. names: of the images.
        outputs: of OUTPUTS.
    """
    import jax

    from sparse_vis.api import encode

    size, checksum = model.encoder.image_size, 0
    image = jax.ShapeDtypeStruct((1, size, size, 3), np.uint8)
    features = jax.eval_shape(functools.partial(encode, model), params, image)
    for leaf in jax.tree.leaves(params):  # tells models apart that share a step number
        checksum = zlib.crc32(np.ascontiguousarray(leaf), checksum)
    return {
        "checkpoint": checkpoint,
        "step": int(step) if (step := Path(checkpoint).name).isdigit() else None,  # None: not of our runs
        "weights_crc32": checksum,
        "images": len(names),
        "images_sha256": hashlib.sha256("\n".join(names).encode()).hexdigest(),
        "image_size": size,
        "grid": list(model.grid(size, size)),
        "outputs": {name: list(getattr(features, name).shape[1:]) for name in outputs},
    }


def encode_all(
    images: Iterator[Loaded],
    batch: int,
    encoder: Callable[[np.ndarray], dict[str, np.ndarray]],
    progress: Progress,
) -> Iterator[dict[str, list | np.ndarray]]:
    """Columns of up to `batch` images at a time: name, height, width and the encoder's outputs."""
    while chunk := list(islice(images, batch)):
        names, heights, widths, pixels = zip(*chunk, strict=True)
        features = encoder(np.stack(pixels))
        yield {"name": list(names), "height": list(heights), "width": list(widths), **features}
        progress.add(len(chunk))


def extract(
    *, checkpoint: str, folder: str, output: Path, outputs: tuple[str, ...], dtype: str, resize: int | None,
    batch: int, shard_size: int, threads: int, on_error: str,
) -> None:  # fmt: skip
    """Write features of all images of a folder, or go on where an earlier call was interrupted.

    Args:
        checkpoint: workdir, step folder, or whatever else sparse_vis.load reads.
        folder: with images. output: folder of the shards.
        outputs: of OUTPUTS. dtype: "float32" or "float16", of the files; the computation is float32.
        resize: short side before the centre crop, in pixels; None: 256/224 of the model's image size.
        batch: images per call of the encoder. shard_size: images per shard. threads: that decode.
        on_error: "stop" or "skip" where an image cannot be used.

    Raises:
        UserError: no images, no checkpoint, another extraction's output, or an image that cannot be used.
    """
    source = open_folder(folder)
    from sparse_vis.api import load
    from sparse_vis.train.checkpoint import FOLDER, find_step

    if Path(checkpoint, FOLDER).is_dir():
        checkpoint = str(find_step(Path(checkpoint)))  # the newest step now: training may go on meanwhile
    model, params = load(checkpoint)
    size = model.encoder.image_size
    resize = resize or round(256 / 224 * size)
    if resize < size:
        raise UserError(f"--resize={resize} is below the model's image size: raise it to {size} or more")
    outputs = tuple(name for name in OUTPUTS if name in outputs)
    manifest = describe(checkpoint, model, params, source.names, outputs)
    manifest |= {"dtype": dtype, "resize": resize, "shard_size": shard_size}
    open_output(output, manifest)
    todo, skipped = survey(output, len(source), shard_size)
    left = [index for rows in todo.values() for index in rows]
    progress = Progress(len(source), len(source) - len(left))
    encoder = make_encoder(model, params, batch, outputs, dtype)
    prepare = functools.partial(load_image, source, size=size, short_side=resize, patch=model.patch)
    futures = load_ahead(prepare, source.names, left, threads, ahead=2 * batch)
    for path, rows in todo.items():
        skipped[path] = []
        images = usable(islice(futures, len(rows)), on_error, skipped[path])
        columns = encode_all(images, batch, encoder, progress)
        write_shard(path, make_schema(manifest["outputs"], dtype), columns, skipped[path])
        progress.add(0, len(skipped[path]), show=True)
    lines = sorted(f"{name}\t{reason}\n" for entries in skipped.values() for name, reason in entries)
    write_text(output / SKIPPED, "".join(lines))
    print(
        f"{output}: {len(source) - len(lines)} images in {len(skipped)} shards, {len(lines)} skipped",
        flush=True,
    )


def _outputs(text: str) -> tuple[str, ...]:
    names = text.split(",")
    if unknown := [name for name in names if name not in OUTPUTS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is unknown; choose from {','.join(OUTPUTS)}")
    return tuple(names)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of at least 1")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m sparse_vis.extract",
        description="Write features of all images below a folder as Parquet shards (docs/extraction.md). "
        "The same command continues an interrupted extraction.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--checkpoint",
        required=True,
        metavar="DIR",
        help="workdir of main.py, or a step folder in it",
    )
    add("--input", required=True, dest="folder", metavar="DIR", help="folder of JPEG, PNG or WebP images")
    add(
        "--output",
        required=True,
        type=Path,
        metavar="DIR",
        help="folder of the shards: new, or to be continued",
    )
    add(
        "--outputs",
        type=_outputs,
        default="cls,sparse,spatial",
        help=f"comma-separated, of {','.join(OUTPUTS)}",
    )
    add("--dtype", choices=tuple(DTYPES), default="float32", help="of the files; computed in float32")
    add(
        "--resize",
        type=_positive,
        help="short side in pixels before the centre crop (None: 256/224 of the crop)",
    )
    add("--batch", type=_positive, default=64, help="images per call of the encoder")
    add("--shard-size", type=_positive, default=4096, help="images per shard")
    add("--threads", type=_positive, default=os.cpu_count(), help="that decode images")
    add("--on-error", choices=ON_ERROR, default="stop", help="when an image cannot be used")
    return parser


def main() -> None:
    """Command line; see --help."""
    arguments = _parser().parse_args()
    try:
        extract(**vars(arguments))
    except OSError as error:
        raise UserError(f"{error}; complete shards are kept, the same command continues.") from None
    except KeyboardInterrupt:
        sys.exit("interrupted: complete shards are kept, the same command continues")


if __name__ == "__main__":
    command_line(main)
