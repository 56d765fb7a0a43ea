"""Write Fashion-MNIST as folders of PNG files, from Debian's package dataset-fashion-mnist.

    python -m benchmarks.evidence.fashion --output=data/fashion

Needs a Debian system with apt (`apt-get update` first). Writes OUTPUT/SPLIT/CLASS/NUMBER.png: the official
60,000 training and 10,000 test images, 28x28 grey pixels in ten classes.
"""

import gzip
import pathlib
import struct

import numpy as np
from PIL import Image

from benchmarks.evidence.packages import folders, unpack_debian
from sparse_vis.runtime.errors import UserError, command_line
from sparse_vis.runtime.progress import Progress

PACKAGE, FOLDER = "dataset-fashion-mnist", "usr/share/datasets/fashion-mnist"
CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
SPLITS = {"train": "train", "test": "t10k"}


def read_idx(file: str | pathlib.Path) -> np.ndarray:
    """The uint8 array of a gzipped IDX file: magic number, sizes (big-endian int32), values."""
    data = gzip.decompress(pathlib.Path(file).read_bytes())
    _, kind, dimensions = struct.unpack(">HBB", data[:4])
    shape = struct.unpack(f">{dimensions}i", data[4 : 4 + 4 * dimensions])
    if kind != 8 or len(data) != 4 + 4 * dimensions + np.prod(shape):
        raise UserError(f"{file} is not an IDX file of bytes; fetch the package {PACKAGE} again.")
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def write_split(tree: pathlib.Path, output: pathlib.Path, split: str) -> None:
    """Write the images of a split below its classes."""
    images, labels = (
        read_idx(tree / FOLDER / f"{SPLITS[split]}-{kind}-ubyte.gz")
        for kind in ("images-idx3", "labels-idx1")
    )
    for name in CLASSES:
        (output / split / name).mkdir(parents=True)
    progress = Progress(f"writing {split} images", len(images))
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        Image.fromarray(image).save(output / split / CLASSES[label] / f"{number:05d}.png")
        progress.add(1)


def main() -> None:
    with folders(__spec__, __doc__) as (output, downloads, tree):
        unpack_debian((PACKAGE,), downloads, tree)
        for split in SPLITS:
            write_split(tree, output, split)


if __name__ == "__main__":
    command_line(main)
