"""Square crops as in the published evaluations: images are resized without antialiasing, label maps too."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int, Integer, Num, Shaped

from sparse_vis.ops.resize import keys_kernel


@dataclass(frozen=True)
class Cut:
    """Crop a box of an image, resize it, crop a square of the result, and optionally mirror that.

    Attributes:
        box: top, left, height and width in pixels of the image. resized: (height, width) after the resize.
        corner: (top, left) of the square in the resized box. size: side of the square.
        flip: whether the square is mirrored.
    """

    box: tuple[int, int, int, int]
    resized: tuple[int, int]
    corner: tuple[int, int]
    size: int
    flip: bool = False

    def image(self, pixels: Num[np.ndarray, "H W C"]) -> Float32[np.ndarray, "size size C"]:
        """The square of an image, uint8 or float in [0, 1]: bicubic (a = -0.75, align_corners), in [0, 1]."""
        scale = 255 if pixels.dtype == np.uint8 else 1
        rows = _combined(self._boxed(pixels), *self._taps(0))
        out = _combined(rows.swapaxes(0, 1), *self._taps(1)).swapaxes(0, 1)
        return self._flipped(np.clip(out / np.float32(scale), 0, 1))

    def labels(self, labels: Shaped[np.ndarray, "H W"]) -> Shaped[np.ndarray, "size size"]:
        """The square of a label map: PyTorch's "nearest-exact", with pixel centres at half-integers."""
        boxed = self._boxed(labels)
        rows, columns = (
            nearest(length, resized, 0.5)[start : start + self.size]
            for length, resized, start in zip(boxed.shape, self.resized, self.corner, strict=True)
        )
        return self._flipped(boxed[rows[:, None], columns])

    def _boxed(self, array: np.ndarray) -> np.ndarray:
        top, left, height, width = self.box
        return array[top : top + height, left : left + width]

    def _flipped(self, array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(array[:, ::-1]) if self.flip else array

    def _taps(self, axis: int) -> tuple[Int[np.ndarray, "4 size"], Float[np.ndarray, "4 size"]]:
        """For each pixel of the square along an axis: indices of the box's four pixels, and their weights."""
        length, resized, start = self.box[2 + axis], self.resized[axis], self.corner[axis]
        # In float32, as PyTorch: far from the corner, float64 coordinates differ by more than 1e-5.
        scale = np.float32(length - 1) / np.float32(max(resized - 1, 1))
        source = np.arange(start, start + self.size, dtype=np.float32) * scale
        taps = np.floor(source).astype(np.int32) + np.arange(-1, 3, dtype=np.int32)[:, None]
        return np.clip(taps, 0, length - 1), keys_kernel(np.abs(source - taps.astype(np.float32)))


def _combined(
    array: Num[np.ndarray, "N M C"], index: Int[np.ndarray, "4 n"], weight: Float[np.ndarray, "4 n"]
) -> Float32[np.ndarray, "n M C"]:
    """n weighted sums, each of four of the N rows."""
    flat = array.reshape(len(array), -1)  # copying whole rows is three times as fast as copying pixels
    parts = (np.multiply(flat[i], w[:, None], dtype=np.float32) for i, w in zip(index, weight, strict=True))
    return sum(parts).reshape(-1, *array.shape[1:])


def centre_cut(height: int, width: int, size: int, short_side: int) -> Cut:
    """The Cut that resizes the short side, rounding the long side down, and crops a centred square."""
    # Computed from the ratio, as in the published code; another formula could round differently.
    aspect = width / height
    tall = int(short_side / aspect) if aspect < 1 else short_side
    wide = short_side if aspect < 1 else int(short_side * aspect)
    corner = (tall - size) // 2, (wide - size) // 2
    return Cut((0, 0, height, width), (tall, wide), corner, size)


def nearest(length: int, resized: int, centre: float = 0.0) -> Int[np.ndarray, " resized"]:
    """For each of `resized` pixels, the index of the nearest of `length` pixels.

    As PyTorch's "nearest"; with `centre` 0.5, as its "nearest-exact".
    """
    scale = np.float32(length) / np.float32(resized)
    source = (np.arange(resized, dtype=np.float32) + np.float32(centre)) * scale
    return np.minimum(np.floor(source).astype(np.int32), length - 1)


def labels_at(labels: Integer[np.ndarray, "B H W"], grid: tuple[int, int]) -> Integer[np.ndarray, "B gh gw"]:
    """Label maps resized to a grid (rows, columns) by PyTorch's "nearest"."""
    rows, columns = (nearest(side, new) for side, new in zip(labels.shape[1:], grid, strict=True))
    return labels[:, rows[:, None], columns]
