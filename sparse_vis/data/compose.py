"""Objects drawn on a background, with exact masks: digits (`scenes.py`) or real objects (`pictures.py`)."""

import abc
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from sparse_vis.runtime.errors import UserError

SPLITS = ("train", "validation", "test")
MOST = 4  # objects in a scene
VISIBLE = 0.9  # least share of an object's pixels that the objects in front leave visible
SIZES, PLACES = 6, 10  # sizes, and places per size, that are tried before an object is left out

Pixels = Float[np.ndarray, "H W 3"]
Mask = UInt8[np.ndarray, "H W"]


class ComposedSource(abc.ABC):
    """Scenes as random-access records; record i depends on (seed, split, i), the spec and the objects alone.

    A record holds `image` uint8 (size, size, 3); `mask` uint8 (size, size), 0 for background and k for the
    visible pixels of the k-th object (alpha above a half); `labels` int32 (4,), classes of the objects,
    padded with -1; `objects` int32 (4,), their numbers within the split, padded likewise; `label`, the class
    of a scene with one object, else -1; and `name`.

    Args:
        spec: of the subclass; has `size`, `train_records` and `eval_records`.
        split: "train", "validation" or "test"; they share neither objects nor backgrounds.
        seed: any non-negative int.

    Raises:
        UserError: unknown split.
    """

    kind: str  # name of the source in settings
    classes: tuple[str, ...]

    def __init__(self, spec, *, split: str, seed: int):
        if split not in SPLITS:
            raise UserError(f"{self.kind} have no split {split!r}; choose one of {', '.join(SPLITS)}.")
        self.spec, self.split, self.seed = spec, split, seed
        self.about = f"in split {split} of the {self.kind}"

    @abc.abstractmethod
    def singles(self) -> "ComposedSource":
        """This source with one object in each scene, for probes that need one class per image."""

    @abc.abstractmethod
    def _draw(self, rng: np.random.Generator, mask: Mask) -> tuple[Pixels, list[tuple[int, int]]]:
        """Draw a scene: its image, in [0, 1], and (class, number) of each object; fills `mask`, all zero."""

    def __len__(self) -> int:
        return self.spec.train_records if self.split == "train" else self.spec.eval_records

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        rng = np.random.default_rng((self.seed, SPLITS.index(self.split), index))
        mask, drawn = np.zeros((self.spec.size,) * 2, np.uint8), np.full((MOST, 2), -1, np.int32)
        image, found = self._draw(rng, mask)
        drawn[: len(found)] = np.reshape(found, (-1, 2))
        return {
            "image": np.rint(image * 255).astype(np.uint8),
            "mask": mask,
            "labels": drawn[:, 0],
            "objects": drawn[:, 1],
            "label": found[0][0] if len(found) == 1 else -1,
            "name": f"{self.kind}/{self.split}/{index:06d}",
        }

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec}, split={self.split!r}, seed={self.seed})"


def cut(rng: np.random.Generator, photograph: Image.Image, size: int, side: float) -> Pixels:
    """A random square of a photograph, at most `side` pixels wide, resized to `size` and maybe flipped."""
    side = min(side, photograph.width, photograph.height)
    x, y = rng.random(2) * (photograph.width - side, photograph.height - side)
    box = (x, y, x + side, y + side)
    # At a gap of 2, Pillow first averages whole pixels: several times as fast for large squares.
    small = photograph.resize((size, size), Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)
    pixels = np.asarray(small, np.float32) / 255
    return (pixels[:, ::-1] if rng.random() < 0.5 else pixels).copy()


def place(
    rng: np.random.Generator, drawn: Image.Image, mask: Mask, areas: list[int], scale, *, centred: bool
) -> tuple[tuple[slice, slice], Image.Image] | None:
    """Find a size and a place for an object that leave the others visible, and draw it in the mask.

    Args:
        drawn: the object; its last band is its alpha.
        areas: number of pixels of each earlier object, hidden ones included; the new one's is appended.
        scale: range of the object's longer side, as a share of the scene's.

    Returns:
        Its box and the resized object, or None if no place was found.
    """
    size = mask.shape[0]
    for _ in range(SIZES):
        factor = size * rng.uniform(*scale) / max(drawn.size)
        width, height = (max(3, round(side * factor)) for side in drawn.size)
        resized = drawn.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
        front = np.asarray(resized.getchannel(resized.getbands()[-1])) > 127
        places = rng.integers((size - height + 1, size - width + 1), size=(PLACES, 2)).tolist()
        if centred:
            places = [((size - height) // 2, (size - width) // 2)]
        box = _free_box(mask, front, places, areas)
        if box is not None:
            mask[box][front] = len(areas) + 1
            areas.append(int(front.sum()))
            return box, resized
    return None


def _free_box(mask: Mask, front, places, areas: list[int]) -> tuple[slice, slice] | None:
    """The box at the first place where every earlier object keeps a share VISIBLE of its pixels, or None."""
    kinds = len(areas) + 1
    spare = np.bincount(mask.ravel(), minlength=kinds)[1:] - VISIBLE * np.asarray(areas)
    for y, x in places:
        box = slice(y, y + front.shape[0]), slice(x, x + front.shape[1])
        if np.all(np.bincount(mask[box][front], minlength=kinds)[1:] <= spare):
            return box
    return None
