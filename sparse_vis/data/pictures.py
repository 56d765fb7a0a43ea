"""Pictures of real objects on photographs, and of photographs alone (docs/pictures.md).

`benchmarks.evidence.pictures` writes their folder: FOLDER/objects/SPLIT/CATEGORY/*.png are objects with
transparent surroundings, FOLDER/photographs/SPLIT/*.jpg are photographs.
"""

import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from sparse_vis.config.ranges import check_fields
from sparse_vis.data.compose import ComposedSource, Mask, Pixels, cut, place
from sparse_vis.runtime.errors import UserError, explained

COMMAND = "python -m benchmarks.evidence.pictures --output=FOLDER"


@dataclasses.dataclass(frozen=True)
class PictureSpec:
    """What the pictures look like and how many there are."""

    size: int = 64  # side of the square image in pixels, at least 24
    photographs: float = 0.25  # share of pictures that are photographs without objects
    plain: float = 0.25  # share of scenes on one flat colour; the others are on photographs
    max_objects: int = 4  # 1 to 4
    object_scale: tuple[float, float] = (0.3, 0.6)  # an object's longer side as a fraction of `size`
    train_records: int = 50_000
    eval_records: int = 2_000  # of the validation and of the test split each

    def __post_init__(self):
        check_fields("data.pictures", vars(self))


class Kit(NamedTuple):
    """What a split's pictures are made of."""

    classes: tuple[str, ...]
    objects: tuple[Image.Image, ...]  # RGBa: colours times alpha
    labels: tuple[int, ...]
    photographs: tuple[Image.Image, ...]  # RGB
    sha256: str  # of the files' contents


@functools.cache
def kit(folder: str, split: str) -> Kit:
    """Read the objects and photographs of a split, once per process. Raises UserError if it cannot."""
    top = Path(folder)
    classes = tuple(sorted({p.name for p in (top / "objects").glob("*/*") if p.is_dir()}))
    files = [f for name in classes for f in sorted((top / "objects" / split / name).glob("*.png"))]
    photographs = sorted((top / "photographs" / split).glob("*.jpg"))
    if not files or not photographs:
        lacks = "photographs" if files else "objects"
        raise UserError(f"--config.data.path={folder} has no {lacks}/{split}; make it with {COMMAND}.")
    found = hashlib.sha256()

    def read(file: Path, mode: str) -> Image.Image:
        with explained(OSError, f"{file} cannot be read", f"make the folder again with {COMMAND}."):
            found.update(file.read_bytes())
            with Image.open(file) as image:
                return image.convert(mode)

    objects = tuple(read(file, "RGBA").convert("RGBa") for file in files)
    grounds = tuple(read(file, "RGB") for file in photographs)
    labels = tuple(classes.index(file.parent.name) for file in files)
    return Kit(classes, objects, labels, grounds, found.hexdigest())


class PictureSource(ComposedSource):
    """Pictures made from a `folder` of objects and photographs; other arguments: see `ComposedSource`."""

    kind = "pictures"

    def __init__(self, folder: str, spec: PictureSpec, *, split: str, seed: int):
        super().__init__(spec, split=split, seed=seed)
        self.path = folder
        self.classes, self.images_sha256 = self._kit.classes, self._kit.sha256

    @property
    def _kit(self) -> Kit:
        # Not an attribute: worker processes get a pickle of the source, and read the files themselves.
        return kit(self.path, self.split)

    def singles(self) -> "PictureSource":
        spec = dataclasses.replace(self.spec, max_objects=1, photographs=0.0)
        return PictureSource(self.path, spec, split=self.split, seed=self.seed)

    def _draw(self, rng: np.random.Generator, mask: Mask) -> tuple[Pixels, list[tuple[int, int]]]:
        size, found = self.spec.size, []
        alone = rng.random() < self.spec.photographs
        if not alone and rng.random() < self.spec.plain:
            image = np.broadcast_to(rng.random(3, np.float32), (size, size, 3)).copy()
        else:
            photograph = self._kit.photographs[rng.integers(len(self._kit.photographs))]
            # From full resolution to the whole photograph, on a logarithmic scale.
            image = cut(rng, photograph, size, size * (min(photograph.size) / size) ** rng.random())
        if alone:
            return image, found
        areas: list[int] = []
        for _ in range(rng.integers(1, self.spec.max_objects + 1)):
            which = int(rng.integers(len(self._kit.objects)))
            placed = place(rng, self._kit.objects[which], mask, areas, self.spec.object_scale, centred=False)
            if placed is not None:
                box, drawn = placed
                pixels = np.asarray(drawn, np.float32) / 255
                image[box] += pixels[..., :3] - pixels[..., 3:] * image[box]
                found.append((self._kit.labels[which], which))
        return image, found
