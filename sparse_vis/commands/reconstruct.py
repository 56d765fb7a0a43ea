"""Reconstruct a folder of images: `python -m sparse_vis reconstruct --help`.

Writes one PNG per image: the image as the model sees it, and beside it the reconstruction from S and L alone.
With --compare-bf16 it also prints the share of codes that are the same with a bfloat16 tokenizer.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import itertools
import os
import pathlib
import sys
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from sparse_vis import api
from sparse_vis.data.decode import MAX_PIXELS, decode, to_square
from sparse_vis.data.records import ON_ERROR, load_ahead, usable
from sparse_vis.data.sources import FolderSource, announce, open_folder
from sparse_vis.evals.pixels.psnr_ssim import psnr
from sparse_vis.interop.load import PLACES
from sparse_vis.models.stellar import Stellar
from sparse_vis.runtime import lock, paths, skipped
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.files import whole, write_whole
from sparse_vis.runtime.progress import Progress
from sparse_vis.runtime.tools import Parser, check_folder, positive

BATCH = 16
SHORT_SIDE = 256 / 224  # of the crop, as in the published evaluation


def side_by_side(
    image: Float[np.ndarray, "H W 3"], reconstruction: Float[np.ndarray, "h w 3"]
) -> Image.Image:
    """Two images side by side, both resized to the height of the taller one.

    Args:
        image, reconstruction: (H, W, 3) and (h, w, 3) float in [0, 1].
    """
    height = max(image.shape[0], reconstruction.shape[0])
    parts = [
        Image.fromarray(np.uint8(np.round(255 * x))).resize((round(x.shape[1] * height / x.shape[0]), height))
        for x in (image, reconstruction)
    ]
    sheet = Image.new("RGB", (sum(part.width for part in parts), height))
    sheet.paste(parts[0], (0, 0))
    sheet.paste(parts[1], (parts[0].width, 0))
    return sheet


def read_image(source: FolderSource, index: int, size: int) -> tuple[int, UInt8[np.ndarray, "size size 3"]]:
    """An image's index, and the image: short side resized to size * 256/224, then centre-cropped.

    Raises:
        UserError: names the image that cannot be decoded.
    """
    short = round(size * SHORT_SIDE)
    bicubic = Image.Resampling.BICUBIC
    return index, to_square(decode(source[index]), size, short_side=short, resample=bicubic)


def make_agreement(model: Stellar, params: dict) -> Callable[[np.ndarray], float]:
    """A function: images (b, H, W, 3) uint8 -> share of codes equal in float32 and bfloat16, in [0, 1].

    Args:
        model, params: from sparse_vis.load, with a tokenizer.
    """

    def codes_in(dtype: str):
        twin = model.clone(tokenizer=model.tokenizer.clone(dtype=dtype))
        return jax.jit(lambda pixels: twin.apply({"params": params}, pixels, method="codes"))

    in_float32, in_bfloat16 = codes_in("float32"), codes_in("bfloat16")

    def share(images: np.ndarray) -> float:
        pixels = images.astype(np.float32) / 255
        return float(np.mean(np.asarray(in_float32(pixels)) == np.asarray(in_bfloat16(pixels))))

    return share


def targets_of(source: FolderSource, output: pathlib.Path) -> list[pathlib.Path]:
    """The PNG path of every image: its name with .png as extension, or appended if two would coincide."""
    stems = [pathlib.PurePath(name).with_suffix(".png") for name in source.names]
    count = collections.Counter(stems)
    pairs = zip(source.names, stems, strict=True)
    return [output / (stem if count[stem] == 1 else f"{name}.png") for name, stem in pairs]


def reconstruct_folder(
    model: Stellar, params: dict, source: FolderSource, output: pathlib.Path, *, compare: bool, on_error: str
) -> None:
    """Write a PNG per image of the source; print progress, mean PSNR and, with `compare`, the agreement.

    Args:
        model, params: from sparse_vis.load. source: images. output: folder of the PNGs, created if needed.
        compare: whether to compare a bfloat16 tokenizer with a float32 one. on_error: "stop" or "skip" at an
            unusable image; skipped.txt in the output lists skipped ones.

    Raises:
        UserError: names the unusable image, or all are unusable.
    """
    size, targets = model.encoder.image_size, targets_of(source, output)
    read, threads = functools.partial(read_image, source, size=size), os.cpu_count() or 1
    progress, skips, done = Progress("reconstructing", len(source)), [], 0
    agreement, kept, quality = make_agreement(model, params) if compare else None, 0.0, []
    # Closed here: else, after an error such as a full disk, one of its own threads might have to close it,
    # and would wait for itself.
    with contextlib.closing(load_ahead(read, list(range(len(source))), threads, ahead=2 * BATCH)) as futures:
        usable_images = usable(source, futures, on_error, skips)
        while batch := list(itertools.islice(usable_images, BATCH)):
            indices, images = [index for index, _ in batch], np.stack([image for _, image in batch])
            pixels = np.asarray(api.reconstruct(model, params, api.encode(model, params, images)))
            floats = images.astype(np.float32) / 255
            for i, image, pixel in zip(indices, floats, pixels, strict=True):
                _write_sheet(targets[i], image, pixel)
            if pixels.shape == floats.shape:  # not for VQ models that turn 224 px into 256
                quality += list(psnr(pixels, floats))
            if agreement is not None:
                kept += agreement(images) * len(images)
            done += len(images)
            progress.add(len(images))
    if not done:
        raise UserError(f"none of {len(source)} images can be used; {skips[0][1].rstrip('.')}.")
    if on_error == "skip":
        progress.add(len(skips))
        write_whole(output / skipped.FILE, "".join(skipped.lines(skips)))
        print(f"{len(skips)} images skipped; {output / skipped.FILE} says which and why")
    if quality:
        print(f"mean PSNR {np.mean(quality):.2f} dB")
    if agreement is not None:
        print(f"a bfloat16 tokenizer keeps {kept / done:.4f} of the codes")


def _write_sheet(path: pathlib.Path, image: np.ndarray, reconstruction: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as partial:
        side_by_side(image, reconstruction).save(partial, format="PNG")


def run(arguments: argparse.Namespace) -> None:
    """Reconstruct the folder.

    Raises:
        UserError: any error that the user can correct.
    """
    source, output = open_folder(arguments.input, arguments.max_pixels), arguments.output.resolve()
    if pathlib.Path(arguments.input).resolve() in (output, *output.parents):
        raise UserError(
            f"--output={arguments.output} lies in the --input folder; give another, lest images mix."
        )
    check_folder(arguments.output)
    announce(source)
    with lock.hold(arguments.output, "reconstruction"):
        _load_and_reconstruct(arguments, source)


def _load_and_reconstruct(arguments: argparse.Namespace, source: FolderSource) -> None:
    model, params = api.load(
        arguments.checkpoint, arguments.name, tokenizer=arguments.tokenizer,
        tokenizer_dtype=arguments.tokenizer_dtype,
    )  # fmt: skip
    if model.decoder.codes and model.tokenizer is None:
        raise UserError(
            f"{arguments.checkpoint} reconstructs through a VQ tokenizer, whose weights are not at hand; "
            "give --tokenizer=FILE."
        )
    if arguments.compare_bf16 and model.tokenizer is None:
        raise UserError(
            f"{arguments.checkpoint} reconstructs pixels without a tokenizer; leave out --compare-bf16."
        )
    try:
        reconstruct_folder(
            model, params, source, arguments.output.resolve(), compare=arguments.compare_bf16,
            on_error=arguments.on_error,
        )  # fmt: skip
    except OSError as error:
        raise UserError(
            f"{arguments.output} cannot be written ({error}); give another --output, or make room and repeat "
            "the command."
        ) from error


def main() -> None:
    """Command line; see --help."""
    parser = Parser(
        prog=sys.argv[0],
        description="Reconstruct every image of a folder from S and L alone: PNGs, the image and beside it "
        "its reconstruction. A VQ model needs its tokenizer (docs/compatibility.md). Example: "
        "python -m sparse_vis reconstruct --checkpoint=runs/quickstart --input=photos --output=sheets",
    )
    add = parser.add_argument
    add("--checkpoint", required=True, type=paths.place, help=PLACES)
    add("--name", help="model of a release folder that holds several")
    add("--input", required=True, type=paths.folder, metavar="FOLDER", help="folder of images")
    add("--output", required=True, type=paths.path, metavar="FOLDER", help="for the PNGs")
    add(
        "--tokenizer",
        type=paths.path,
        metavar="FILE",
        help="weights of the VQ tokenizer, where the checkpoint does not name them",
    )
    add(
        "--tokenizer-dtype",
        choices=["float32", "bfloat16"],
        default="float32",
        help="of the tokenizer's convolutions (%(default)s)",
    )
    add("--on-error", choices=ON_ERROR, default="stop", help="when an image cannot be used (%(default)s)")
    add("--max-pixels", type=positive, default=MAX_PIXELS, help="of an image that is used (%(default)s)")
    add("--compare-bf16", action="store_true", help="measure what share of codes a bfloat16 tokenizer keeps")
    run(parser.parse_args())
