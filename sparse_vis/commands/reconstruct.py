"""Reconstruct a folder of images: `python -m sparse_vis reconstruct --help`.

It writes one PNG per image: the image as the model sees it, and beside it the reconstruction from S and L
alone; with --maps also the hard segmentation, and in a second row where each token looks. With --compare-bf16
it also prints the share of codes that are the same with a bfloat16 tokenizer.
"""

import argparse
import collections
import functools
import itertools
import os
import pathlib
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Float
from PIL import Image

from sparse_vis import api
from sparse_vis.commands import outputs
from sparse_vis.data.records import images_ahead, load_image, none_usable
from sparse_vis.data.sources import Source, announce, open_input
from sparse_vis.evals.pixels.psnr_ssim import psnr
from sparse_vis.models.stellar import Stellar
from sparse_vis.runtime import skipped
from sparse_vis.runtime.batches import Devices, run_in_batches
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.files import whole, write_whole
from sparse_vis.runtime.names import quoted
from sparse_vis.runtime.paths import AnyPath, as_path
from sparse_vis.runtime.progress import Progress
from sparse_vis.runtime.tools import Parser, check_size, image_size
from sparse_vis.viz import overlays

BATCH = 16


def side_by_side(
    image: Float[np.ndarray, "H W 3"], reconstruction: Float[np.ndarray, "h w 3"]
) -> Image.Image:
    """Two images, in [0, 1], side by side, both resized to the height of the taller one."""
    height = max(image.shape[0], reconstruction.shape[0])
    parts = [
        Image.fromarray(np.uint8(np.rint(255 * x))).resize((round(x.shape[1] * height / x.shape[0]), height))
        for x in (image, reconstruction)
    ]
    return Image.fromarray(np.hstack(parts))


def with_maps(
    sheet: Image.Image, image: Float[np.ndarray, "H W 3"], L: Float[np.ndarray, "n r"], grid: tuple[int, int]
) -> Image.Image:
    """A sheet of `side_by_side` with the image under argmax L added to the right, and each token's map below.

    A map is black where it is smallest, and has the token's colour where it is largest.
    """
    r, pixels, colours = L.shape[1], np.uint8(np.rint(255 * image)), overlays.token_colours(L.shape[1])
    width = round(pixels.shape[1] * sheet.height / pixels.shape[0])
    hard = overlays.lay_over(pixels, overlays.segment_overlay(L, grid), smooth=False)
    edges = [round(k * (sheet.width + width) / r) for k in range(r + 1)]
    height = round(edges[1] * sheet.height / width)
    above, below = [sheet, Image.fromarray(hard).resize((width, sheet.height))], []
    for token, (left, right) in enumerate(itertools.pairwise(edges)):
        map_ = L[:, token].reshape(*grid, 1)
        shown = (map_ - map_.min()) / max(float(np.ptp(map_)), 1e-12) * colours[token]
        large = (right - left, height)  # bicubic resizing would overshoot, to other colours
        below.append(Image.fromarray(np.uint8(np.rint(255 * shown))).resize(large, Image.Resampling.BILINEAR))
    return Image.fromarray(np.vstack([np.hstack(above), np.hstack(below)]))


def make_agreement(model: Stellar, params: dict) -> Callable[[np.ndarray], jax.Array]:
    """A function: images (b, H, W, 3) uint8 -> share of the codes that are equal in float32 and bfloat16."""
    twins = [model.clone(tokenizer=model.tokenizer.clone(dtype=dtype)) for dtype in ("float32", "bfloat16")]

    @jax.jit
    def share(images):
        pixels = images.astype(np.float32) / 255
        one, other = (twin.apply({"params": params}, pixels, method="codes") for twin in twins)
        return (one == other).mean()

    return share


def target_of(source: Source, output: AnyPath) -> Callable[[str], AnyPath]:
    """A function from an image's name to the path of its PNG, below `output`.

    The extension of the name is replaced by .png. If two paths would then be equal, or the source does not
    list its names, .png is appended instead.
    """
    stems = {name: pathlib.PurePath(name).with_suffix(".png") for name in getattr(source, "names", ())}
    count = collections.Counter(stems.values())

    def target(name: str) -> AnyPath:
        stem = stems.get(name)
        path = pathlib.PurePath(stem if count[stem] == 1 else f"{name}.png")
        if path.is_absolute() or ".." in path.parts:
            raise UserError(f"the image name {quoted(name)} leads out of {output}; rename the image.")
        return output / path

    return target


def reconstruct_folder(model: Stellar, params: dict, source: Source, given: argparse.Namespace) -> None:
    """Write a PNG per image of the source, as the flags say; print progress, mean PSNR and the agreement.

    Raises UserError if an image cannot be used, or with --on-error=skip, which lists it in skipped.txt, if
    none can be used.
    """
    params = Devices().everywhere(params)

    def both(images):
        found = api.encode(model, params, images)
        return api.reconstruct(model, params, found), found.spatial

    agreement = make_agreement(model, params) if given.compare_bf16 else None
    output, kept, quality, done = given.output.resolve(), 0.0, [], 0
    size = given.size or model.encoder.image_size
    load = functools.partial(load_image, source, size=size, letterbox=given.letterbox)
    target, progress = target_of(source, output), Progress("reconstructing", len(source))
    how = dict(threads=os.cpu_count() or 1, ahead=2 * BATCH, on_error=given.on_error)
    with images_ahead(source, load, list(range(len(source))), **how) as take:
        usable, skips = take(len(source))
        while batch := list(itertools.islice(usable, BATCH)):
            images = np.stack([image.pixels for image in batch])
            (pixels, maps_of), floats = run_in_batches(both, BATCH, images), images.astype(np.float32) / 255
            grid = model.grid(*images.shape[1:3])
            seen = floats[:, : grid[0] * model.patch, : grid[1] * model.patch]
            for loaded, image, pixel, inside, L in zip(batch, floats, pixels, seen, maps_of, strict=True):
                path, sheet = target(loaded.name), side_by_side(image, pixel)
                path.parent.mkdir(parents=True, exist_ok=True)
                with whole(path) as partial:
                    (with_maps(sheet, inside, L, grid) if given.maps else sheet).save(partial, format="PNG")
            if pixels.shape == seen.shape:  # not for VQ models that turn 224 px into 256
                quality += list(psnr(pixels, seen))
            if agreement is not None:
                kept += agreement(images) * len(images)
            done += len(images)
            progress.add(len(images))
    if not done:
        raise none_usable(len(source), skips)
    if given.on_error == "skip":
        progress.add(len(skips))
        write_whole(output / skipped.FILE, "".join(skipped.lines(skips)))
        print(f"{len(skips)} images skipped; {output / skipped.FILE} lists them with the reasons")
    print(f"wrote {done} PNGs into {given.output}")
    if quality:
        print(f"mean PSNR {np.mean(quality):.2f} dB")
    if agreement is not None:
        print(f"with a bfloat16 tokenizer {kept / done:.4f} of the codes stay the same")


def run(given: argparse.Namespace) -> None:
    """Reconstruct the folder; `given` are the flags of `main`."""
    source = open_input(given.input, given.split, given.data_dir, given.max_pixels)
    output = given.output.resolve()
    if as_path(given.input).resolve() in (output, *output.parents):
        raise UserError(
            f"--output={given.output} is inside the --input folder, where its files would be taken for "
            "images; give another."
        )
    announce(source)
    with outputs.writing(given.output, "reconstruction"):
        model, params = api.load(
            given.checkpoint, given.name, tokenizer=given.tokenizer, tokenizer_dtype=given.tokenizer_dtype
        )
        api.check_tokenizer(model, given.checkpoint)
        if given.compare_bf16 and model.tokenizer is None:
            raise UserError(
                f"{given.checkpoint} reconstructs pixels without a tokenizer; leave out --compare-bf16."
            )
        if given.size:
            check_size(given.size, model.patch)
        reconstruct_folder(model, params, source, given)


def main() -> None:
    parser = Parser(
        description="Reconstruct every image of a folder or another source from S and L alone; a PNG shows "
        "each image and its reconstruction. A VQ model needs its tokenizer (docs/compatibility.md). Example: "
        "python -m sparse_vis reconstruct --checkpoint=runs/quickstart --input=photos --output=sheets",
    )
    add = parser.add_argument
    for flag in ("--checkpoint", "--name", "--input", "--split", "--data-dir"):
        add(flag)
    add("--output", help="folder for the PNGs")
    add("--tokenizer")
    convolutions = "dtype of the tokenizer's convolutions (%(default)s)"
    add("--tokenizer-dtype", choices=["float32", "bfloat16"], default="float32", help=convolutions)
    size = "size in pixels of the largest centre crop (default: the model's size, cropped as in extract)"
    add("--size", type=image_size, metavar="HxW", help=size)
    add("--letterbox")
    shown = "also show argmax L, and each token's map, black where it is smallest"
    add("--maps", action="store_true", help=shown)
    add("--on-error")
    add("--max-pixels")
    compared = "measure which share of the codes is the same with a bfloat16 tokenizer"
    add("--compare-bf16", action="store_true", help=compared)
    run(parser.parse_args())
