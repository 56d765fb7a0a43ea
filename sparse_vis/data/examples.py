"""The photographs that come with the package; photographs/README.md has their sources and licences."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from sparse_vis.data.decode import fitted

FOLDER = Path(__file__).with_name("photographs")


def photographs(size: int) -> dict[str, UInt8[np.ndarray, "size size 3"]]:
    """Name → the largest centred square of each photograph, resized to `size` pixels."""
    found = {}
    for file in sorted(FOLDER.glob("*.jpg")):
        with Image.open(file) as image:
            found[file.stem] = fitted(np.asarray(image.convert("RGB")), (size, size), letterbox=False)
    return found
