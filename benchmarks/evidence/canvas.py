"""Measure what crops lose if images are first reduced to a canvas (config.data.canvas).

    python -m benchmarks.evidence.canvas --images=FOLDER

Random crops are resized as in training (bicubic, no antialiasing, as published), from canvases of several
sizes and from the originals. Each is compared with the same square of the original, resized with
antialiasing. Prints a Markdown table of the mean PSNR in dB, for crops of the global and of the local views.
"""

import functools
import itertools

import jax
import numpy as np
from PIL import Image

from benchmarks.speed.command import script_parser
from sparse_vis.data.decode import decode, to_canvas
from sparse_vis.data.folder import FolderSource
from sparse_vis.evals.pixels.psnr_ssim import psnr
from sparse_vis.runtime import paths
from sparse_vis.runtime.errors import UserError, command_line
from sparse_vis.views.crops import UNIFORMS, box_of, crop
from sparse_vis.views.make import ViewSpec

CANVASES = (256, 512, 1024)
LEAST = 2048  # pixels; images whose longer side is shorter are not used
CROPS = 8  # per image and kind of view

compiled_crop = functools.partial(jax.jit, static_argnums=2)(crop)


def antialiased(image: np.ndarray, box: tuple, scale: float, size: int) -> np.ndarray | None:
    """The square that `crop` cuts from the image reduced by `scale`, but from the image itself, in [0, 1].

    `crop` puts its first and last sample on the centres of the box's outermost pixels; Pillow's pixels fill
    its box. None if Pillow's box would not be inside of the image.
    """
    top, left, height, width = (int(x) for x in box)
    edges = []
    for first, length in ((left, width), (top, height)):
        pitch = scale * (length - 1) / (size - 1)
        start = scale * (first + 0.5) - pitch / 2
        edges.append((start, start + size * pitch))
    (x0, x1), (y0, y1) = edges
    if min(x0, y0) < 0 or x1 > image.shape[1] or y1 > image.shape[0]:
        return None
    found = Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC, box=(x0, y0, x1, y1))
    return np.asarray(found, np.float32) / 255


def agreement(
    image: np.ndarray, size: int, scale: tuple[float, float], rng: np.random.Generator
) -> list[dict]:
    """For each of CROPS random crops of an image, side of the canvas (0: the original) -> PSNR."""
    rows = []
    canvases = {0: (image, *image.shape[:2])} | {
        side: to_canvas(image, side, min_side=1) for side in CANVASES if side < max(image.shape)
    }
    while len(rows) < CROPS:
        uniform, row = rng.random(UNIFORMS, np.float32), {}
        for side, (canvas, height, width) in canvases.items():
            box = box_of(uniform, height, width, scale, ViewSpec().aspect)
            wanted = antialiased(image, box, image.shape[1] / width, size)
            if wanted is not None:
                row[side] = psnr(np.clip(compiled_crop(canvas, box, size), 0, 1)[None], wanted[None])[0]
        if row.keys() == canvases.keys():
            rows.append(row)
    return rows


def main() -> None:
    parser = script_parser(__spec__, __doc__)
    parser.add_argument("--images", type=paths.path, required=True, metavar="FOLDER", help="large images")
    parser.add_argument("--count", type=int, default=40, help="of images, at most (%(default)s)")
    arguments = parser.parse_args()
    source, rng = FolderSource(str(arguments.images)), np.random.default_rng(0)
    kinds = {
        "global": (ViewSpec.size, ViewSpec.global_scale),
        "local": (ViewSpec.local_size, ViewSpec.local_scale),
    }
    found, used = {kind: [] for kind in kinds}, 0
    images = (decode(source[number]) for number in range(len(source)))
    large = (image for image in images if max(image.shape) >= LEAST)
    for image in itertools.islice(large, arguments.count):
        used += 1
        for kind, (size, scale) in kinds.items():
            found[kind] += agreement(image, size, scale, rng)
    if not used:
        what = f"--images={arguments.images} has no image with a side of {LEAST} px"
        raise UserError(f"{what}; give larger ones.")
    print(f"{used} images with a longer side of at least {LEAST} px, {CROPS} crops of each kind per image")
    print("| crops | " + " | ".join(f"canvas {side}" for side in CANVASES) + " | original |")
    print("|---" * (len(CANVASES) + 2) + "|")
    for kind, rows in found.items():
        (size, (low, high)), means = kinds[kind], [np.mean([row[s] for row in rows]) for s in (*CANVASES, 0)]
        cells = " | ".join(f"{mean:.1f}" for mean in means)
        print(f"| {kind}: {size} px from {low} to {high} of the image | {cells} |")


if __name__ == "__main__":
    command_line(main)
