"""Features of many images as Parquet shards: `python -m sparse_vis extract --help`."""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import signal
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from sparse_vis.commands.shard_folder import drop_changed, finish, open_output, plan, wait_for
from sparse_vis.commands.shards import DTYPES, fingerprint, make_schema, read_shard, write_shard
from sparse_vis.config.ranges import SIDE
from sparse_vis.data.decode import MAX_PIXELS
from sparse_vis.data.folder import stamp
from sparse_vis.data.records import ON_ERROR, Loaded, load_ahead, load_image, usable
from sparse_vis.data.sources import Source, announce, open_input
from sparse_vis.interop.load import PLACES
from sparse_vis.runtime import lock, paths
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.progress import Progress
from sparse_vis.runtime.tools import Parser, check_folder, positive

OUTPUTS = ("cls", "sparse", "dense", "spatial", "lowrank")


def extract(
    *, checkpoint: str, name: str | None, images: str, split: str | None, data_dir: str | None, output: Path,
    outputs: tuple[str, ...], dtype: str, resize: int | None, batch: int, shard_size: int, threads: int,
    on_error: str, max_pixels: int = MAX_PIXELS,
) -> None:  # fmt: skip
    """Write features of all images of a source, or continue an interrupted call.

    Each of n processes writes every n-th shard, with its own devices; process 0 completes the folder.

    Args:
        checkpoint, name: path and name of the model, as for sparse_vis.load.
        images, split, data_dir: as for `open_input`.
        output: folder of the shards, shared by all processes.
        outputs: names in OUTPUTS. dtype: "float32" or "float16", of the files; the computation is float32.
        resize: short side before the centre crop, in pixels; None: 256/224 of the model's image size.
        batch: images per call of the encoder. shard_size: images per shard. threads: for decoding.
        on_error: "stop" or "skip" at an unusable image. max_pixels: images with more are unusable.

    Raises:
        UserError: no images, no checkpoint, another extraction's output, or an image that cannot be used.
    """
    check_folder(output)
    if resize is not None and resize > SIDE:
        raise UserError(f"--resize={resize} is too large; it must be at most {SIDE}.")
    source = open_input(images, split, data_dir, max_pixels)
    import jax

    from sparse_vis.api import assemble
    from sparse_vis.commands.encoding import describe, make_encoder
    from sparse_vis.interop.load import read_model

    found = read_model(checkpoint, name)
    checkpoint = str(found.step or checkpoint)  # the step folder, because training may continue meanwhile
    model, params = assemble(found, checkpoint)
    size = model.encoder.image_size
    resize = resize or round(256 / 224 * size)
    if resize < size:
        raise UserError(f"--resize={resize} is below the model's image size; raise it to {size} or more.")
    outputs = tuple(name for name in OUTPUTS if name in outputs)
    manifest = describe(checkpoint, model, params, outputs)
    manifest |= {"images": len(source), "images_sha256": source.images_sha256}
    manifest |= {"dtype": dtype, "resize": resize, "shard_size": shard_size}
    process, processes = jax.process_index(), jax.process_count()
    if process == 0:
        announce(source)
    open_output(output, manifest, first=process == 0)
    shards = plan(output, len(source), shard_size)
    # Every process checks all shards, so that none waits for another.
    there = {path: rows for path, rows in shards.items() if path.exists()}
    drop_changed({path: stamp(source, rows) for path, rows in there.items()})
    # By shard number, so that processes need not agree on which shards are left to write.
    mine = {path: rows for k, (path, rows) in enumerate(shards.items()) if k % processes == process}
    encoder = make_encoder(model, params, batch, outputs, dtype)
    write_shards(
        source, mine, make_schema(manifest["outputs"], dtype), encoder,
        functools.partial(load_image, source, size=size, short_side=resize),
        batch=batch, threads=threads, on_error=on_error, settings=fingerprint(manifest),
        what="features" if processes == 1 else f"features, process {process} of {processes}",
    )  # fmt: skip
    wait_for(list(shards), "shards")
    if process == 0:
        rows, skipped = finish(output, manifest, shards)
        print(f"{output}: {rows} images in {len(shards)} shards, {skipped} skipped", flush=True)


def write_shards(
    source: Source, shards: dict[Path, range], schema: pa.Schema,
    encoder: Callable[[np.ndarray], dict[str, np.ndarray]], load: Callable[[int], Loaded], *, batch: int,
    threads: int, on_error: str, what: str, settings: str,
) -> None:  # fmt: skip
    """Write the missing shards; check the existing ones first.

    Args:
        source: random-access records. shards: from `plan`. schema: from `make_schema`.
        encoder: from `make_encoder`. load: index of an image -> Loaded.
        batch, threads, on_error: as in `extract`. what: for the progress line.
        settings: `fingerprint` of the extraction's settings.

    Raises:
        UserError: an image cannot be used, or an existing shard cannot be read.
    """
    from sparse_vis.commands.encoding import encode_all

    todo = {path: rows for path, rows in shards.items() if not path.exists()}
    left = [index for rows in todo.values() for index in rows]
    total = sum(map(len, shards.values()))
    checked = Progress("checking finished shards", total - len(left))
    for path in [path for path in shards if path not in todo]:  # report damage now, not at the end
        read_shard(path, len(shards[path]), settings, content=True)
        checked.add(len(shards[path]))
    progress = Progress(what, total, total - len(left))
    # Closed here: else, after an error such as a full disk, one of its own threads might have to close it,
    # and would wait for itself.
    with contextlib.closing(load_ahead(load, left, threads, ahead=2 * batch)) as futures:
        for path, rows in todo.items():
            skipped: list[tuple[str, str]] = []
            images = usable(source, islice(futures, len(rows)), on_error, skipped)
            about = {"settings": settings, **stamp(source, rows)}
            write_shard(path, schema, encode_all(images, batch, encoder, progress), skipped, about)
            if skipped:
                progress.add(len(skipped))


def _outputs(text: str) -> tuple[str, ...]:
    names = text.split(",")
    if unknown := [name for name in names if name not in OUTPUTS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is unknown; choose from {','.join(OUTPUTS)}")
    return tuple(names)


def _parser() -> Parser:
    parser = Parser(
        prog=sys.argv[0],
        description="Write features of all images of a folder, a packed folder or a TFDS data set as "
        "Parquet shards (docs/extraction.md). The same command continues an interrupted extraction.",
    )
    add = parser.add_argument
    add("--checkpoint", required=True, type=paths.place, help=PLACES)
    add("--name", help="model of a release folder that holds several")
    add(
        "--input",
        required=True,
        dest="images",
        type=paths.folder,
        metavar="FOLDER",
        help="folder of images, packed folder (sparse_vis.commands.pack), or tfds:<name>",
    )
    add("--split", help="of a TFDS data set, e.g. train[:90%%]")
    add(
        "--data-dir",
        "--data_dir",
        type=paths.folder,
        metavar="FOLDER",
        help="in which the TFDS data set was prepared",
    )
    add(
        "--output",
        required=True,
        type=paths.path,
        metavar="FOLDER",
        help="folder of the shards: new, or to be continued",
    )
    add(
        "--outputs",
        type=_outputs,
        default="cls,sparse,spatial",
        help=f"comma-separated, of {','.join(OUTPUTS)} (%(default)s)",
    )
    add(
        "--dtype",
        choices=tuple(DTYPES),
        default="float32",
        help="of the files; computed in float32 (%(default)s)",
    )
    add(
        "--resize",
        type=positive,
        help="short side in pixels before the centre crop (256/224 of the model's image size unless given)",
    )
    add("--batch", type=positive, default=64, help="images per call of the encoder (%(default)s)")
    add("--shard-size", type=positive, default=4096, help="images per shard (%(default)s)")
    add("--threads", type=positive, default=os.cpu_count(), help="that decode images (%(default)s)")
    add("--on-error", choices=ON_ERROR, default="stop", help="when an image cannot be used (%(default)s)")
    add("--max-pixels", type=positive, default=MAX_PIXELS, help="of an image that is used (%(default)s)")
    add(
        "--distributed", help="be one process of several: auto, or HOST:PORT,PROCESSES,PROCESS (docs/pods.md)"
    )
    return parser


def run(arguments: dict) -> None:
    """Extract in this process; errors of the file system become a UserError."""
    try:
        extract(**arguments)
    except OSError as error:
        raise UserError(
            f"extraction into {str(arguments['output'])!r} stopped ({error}); complete shards are kept: mend "
            "that, or make room, and give the same command again."
        ) from None
    except KeyboardInterrupt:
        sys.exit("interrupted: complete shards are kept, the same command continues")


def main() -> None:
    """Command line; see --help."""
    arguments = vars(_parser().parse_args())
    others = arguments.pop("distributed")
    if not others:
        check_folder(arguments["output"])
        with lock.hold(arguments["output"], "extraction"):
            return run(arguments)
    from sparse_vis.train import distributed

    with distributed.joined(others, 0):
        # jax.distributed handles SIGTERM by waiting for a training step; here it should end the process.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with distributed.held(arguments["output"], "extraction"):
            run(arguments)
