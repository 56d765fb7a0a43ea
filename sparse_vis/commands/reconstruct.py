"""Reconstruct a folder of images: `python -m sparse_vis reconstruct --help`.

Writes one PNG per image: the image as the model sees it, and beside it the reconstruction from S and L alone.
With --compare-bf16 it also says what share of the codes a bfloat16 tokenizer keeps on these images.
"""

from __future__ import annotations

import argparse
import collections
import pathlib
import sys
import types
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from sparse_vis import api
from sparse_vis.data.decode import decode, to_square
from sparse_vis.data.image_file import MAX_PIXELS
from sparse_vis.data.sources import FolderSource, announce, open_folder
from sparse_vis.evals.pixels.reconstruction import psnr
from sparse_vis.interop.load import PLACES
from sparse_vis.models.stellar import Stellar
from sparse_vis.runtime import lock, paths
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.files import whole
from sparse_vis.runtime.progress import Progress
from sparse_vis.runtime.tools import Parser, check_folder, positive

BATCH = 16
SHORT_SIDE = 256 / 224  # of the crop, as in the published evaluation


def side_by_side(
    image: Float[np.ndarray, "H W 3"], reconstruction: Float[np.ndarray, "h w 3"]
) -> Image.Image:
    """Two images as one, at the height of the taller.

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


def read_batch(source: FolderSource, indices: range, size: int) -> UInt8[np.ndarray, "b size size 3"]:
    """Images with the short side resized to size * 256/224, then the centre, uint8.

    Raises:
        UserError: names the image that cannot be decoded.
    """
    short = round(size * SHORT_SIDE)
    bicubic = Image.Resampling.BICUBIC
    return np.stack([to_square(decode(source[i]), size, short_side=short, resample=bicubic) for i in indices])


def make_agreement(model: Stellar, params: dict) -> Callable[[np.ndarray], float]:
    """images (b, H, W, 3) uint8 -> share of training targets that a bfloat16 tokenizer keeps, in [0, 1].

    Args:
        model, params: of sparse_vis.load, with a tokenizer.
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
    """The PNG of every image: its own name with .png; the full name kept where two would coincide."""
    stems = [pathlib.PurePath(name).with_suffix(".png") for name in source.names]
    count = collections.Counter(stems)
    pairs = zip(source.names, stems, strict=True)
    return [output / (stem if count[stem] == 1 else f"{name}.png") for name, stem in pairs]


def reconstruct_folder(
    model: Stellar, params: dict, source: FolderSource, output: pathlib.Path, *, compare: bool
) -> None:
    """Write a PNG per image of the source, and print progress, mean PSNR and the agreement if asked for.

    Args:
        model, params: of sparse_vis.load. source: images. output: folder of the PNGs, made if needed.
        compare: whether to compare a bfloat16 tokenizer with a float32 one.

    Raises:
        UserError: names the image that cannot be decoded.
    """
    size, targets = model.encoder.image_size, targets_of(source, output)
    progress = Progress("reconstructing", len(source))
    agreement, kept, quality = make_agreement(model, params) if compare else None, 0.0, []
    for start in range(0, len(source), BATCH):
        indices = range(start, min(start + BATCH, len(source)))
        images = read_batch(source, indices, size)
        pixels = np.asarray(api.reconstruct(model, params, api.encode(model, params, images)))
        floats = images.astype(np.float32) / 255
        for i, image, pixel in zip(indices, floats, pixels, strict=True):
            targets[i].parent.mkdir(parents=True, exist_ok=True)
            with whole(targets[i]) as partial:
                side_by_side(image, pixel).save(partial, format="PNG")
        if pixels.shape == floats.shape:  # not where 224 px come back as 256
            quality += list(psnr(pixels, floats))
        if agreement is not None:
            kept += agreement(images) * len(images)
        progress.add(len(images))
    if quality:
        print(f"mean PSNR {np.mean(quality):.2f} dB")
    if agreement is not None:
        print(f"a bfloat16 tokenizer keeps {kept / len(source):.4f} of the codes")


def run(arguments: argparse.Namespace) -> None:
    """The tool, once its arguments are parsed.

    Raises:
        UserError: anything the user can mend.
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
        reconstruct_folder(model, params, source, arguments.output.resolve(), compare=arguments.compare_bf16)
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
    add("--max-pixels", type=positive, default=MAX_PIXELS, help="of an image that is used (%(default)s)")
    add("--compare-bf16", action="store_true", help="measure what share of codes a bfloat16 tokenizer keeps")
    run(parser.parse_args())


class _Module(types.ModuleType):
    """This module, callable: importing it hides the function of the same name in the package."""

    def __call__(self, *args, **kwargs):
        return api.reconstruct(*args, **kwargs)


sys.modules[__name__].__class__ = _Module
