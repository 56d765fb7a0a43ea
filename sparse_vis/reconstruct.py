"""Reconstruct a folder of images: `python -m sparse_vis.reconstruct --checkpoint=WORKDIR --input=FOLDER --output=DIR`.

Writes one PNG per image: the image as the model sees it, and beside it the reconstruction from S and L alone.
With --compare-bf16 it also says what share of the codes a bfloat16 tokenizer keeps on these images.
"""

from __future__ import annotations

import argparse
import pathlib
import time

import numpy as np
from PIL import Image

from sparse_vis import api
from sparse_vis.data.decode import decode, to_square
from sparse_vis.data.sources import FolderSource
from sparse_vis.errors import UserError, command_line
from sparse_vis.evals.reconstruction import psnr
from sparse_vis.models.stellar import Stellar
from sparse_vis.models.vqgan import code_agreement

BATCH = 16
MAIN_RECIPE_MARGIN = 256 / 224  # short side before the centre crop, as in the published evaluation


def side_by_side(image: np.ndarray, reconstruction: np.ndarray) -> Image.Image:
    """Two images as one, at the height of the taller.

    Args:
        image, reconstruction: (H, W, 3) and (h, w, 3) float in [0, 1].
    """
    height = max(image.shape[0], reconstruction.shape[0])
    sheets = [
        Image.fromarray(np.uint8(np.round(255 * x))).resize((round(x.shape[1] * height / x.shape[0]), height))
        for x in (image, reconstruction)
    ]
    sheet = Image.new("RGB", (sum(s.width for s in sheets), height))
    sheet.paste(sheets[0], (0, 0))
    sheet.paste(sheets[1], (sheets[0].width, 0))
    return sheet


def read_batch(source: FolderSource, indices: range, size: int) -> np.ndarray:
    """(b, size, size, 3) uint8: short side to size * 256/224, then the centre."""
    short = round(size * MAIN_RECIPE_MARGIN)
    images = [
        to_square(decode(source[i]), size, short_side=short, resample=Image.Resampling.BICUBIC) for i in indices
    ]
    return np.stack(images)


def tokenizer_agreement(model: Stellar, params: dict, images: np.ndarray) -> float:
    """Share of codes that a bfloat16 tokenizer keeps relative to float32 on these images.

    Raises:
        UserError: the model has no tokenizer.
    """
    if model.tokenizer is None:
        raise UserError("--compare-bf16 needs a VQ model with its tokenizer; give --tokenizer=FILE.")
    return code_agreement(model.tokenizer, params["tokenizer"], images.astype(np.float32) / 255)


def reconstruct_folder(model: Stellar, params: dict, source: FolderSource, output: pathlib.Path, compare: bool) -> None:
    """Write a PNG per image of the source, with progress; see the module's docstring."""
    size, began, kept, quality = model.encoder.image_size, time.perf_counter(), [], []
    for start in range(0, len(source), BATCH):
        indices = range(start, min(start + BATCH, len(source)))
        images = read_batch(source, indices, size)
        pixels = np.asarray(api.reconstruct(model, params, api.encode(model, params, images)))
        for i, image, pixel in zip(indices, images.astype(np.float32) / 255, pixels, strict=True):
            target = output / pathlib.Path(source.names[i]).with_suffix(".png")
            target.parent.mkdir(parents=True, exist_ok=True)
            side_by_side(image, pixel).save(target)
            if pixel.shape == image.shape:
                quality.append(float(psnr(pixel[None], image[None])[0]))
        if compare:
            kept.append(tokenizer_agreement(model, params, images) * len(images))
        rate = indices.stop / (time.perf_counter() - began)
        print(f"{indices.stop}/{len(source)} images  {rate:.1f} images/s  "
              f"ETA {(len(source) - indices.stop) / rate:.0f} s", flush=True)  # fmt: skip
    if quality:
        print(f"mean PSNR {np.mean(quality):.2f} dB")
    if compare:
        print(f"a bfloat16 tokenizer keeps {sum(kept) / len(source):.4f} of the codes")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m sparse_vis.reconstruct", description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, help="anything that sparse_vis.load takes")
    parser.add_argument("--name", help="model of a release folder that holds several")
    parser.add_argument("--input", required=True, help="folder of images")
    parser.add_argument("--output", required=True, type=pathlib.Path, help="folder for the PNGs")
    parser.add_argument("--tokenizer", help="weights of the VQ tokenizer")
    parser.add_argument("--tokenizer-dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--compare-bf16", action="store_true", help="measure the codes a bfloat16 tokenizer keeps")
    arguments = parser.parse_args()
    source = FolderSource(arguments.input)
    model, params = api.load(
        arguments.checkpoint, arguments.name, tokenizer=arguments.tokenizer,
        tokenizer_dtype=arguments.tokenizer_dtype,
    )  # fmt: skip
    reconstruct_folder(model, params, source, arguments.output, arguments.compare_bf16)


if __name__ == "__main__":
    command_line(main)
