"""Any Python object with `__len__` and `__getitem__` as a source: a list of paths, arrays, a data set."""

from __future__ import annotations

import numbers
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.names import quoted
from sparse_vis.runtime.skipped import MAX_PIXELS

TAKEN = "a path, the bytes of a file, a PIL image or uint8 pixels (H, W, 3) or (H, W)"


class OwnSource:
    """The items of an object as records, in its order.

    An item is an image, a pair (image, label), or a dict with `image` and, if known, `label` and `name`;
    other keys are kept. An image is a path, the bytes of a file, a PIL image, or uint8 pixels (H, W, 3) or
    (H, W). Item i must depend on i alone, and the object must be picklable if there are worker processes.

    Args:
        data: the object. classes: names of the classes; unless given, `data.classes` if there is one. Without
            classes, labels are left out.

    Raises:
        UserError: `data` is empty, has no `__len__` or `__getitem__`, or its first item is none of these.
    """

    def __init__(self, data: Any, classes: Sequence[str] | None = None, max_pixels: int = MAX_PIXELS):
        kind = type(data).__name__
        if isinstance(data, Mapping) or not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
            raise UserError(
                f"a {kind} is no data set; give an object with __len__ and __getitem__ by number, "
                f"whose items are {TAKEN}, or pairs of such an image and a label."
            )
        if not len(data):
            raise UserError(f"the {kind} with the images is empty; give one with images.")
        named = getattr(data, "classes", None) if classes is None else classes
        self.data, self.max_pixels = data, max_pixels
        self.classes = tuple(map(str, named)) if isinstance(named, Sequence) else ()
        self.about = f"in a {kind}"
        self[0]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        item = self.data[index]
        if isinstance(item, tuple) and len(item) == 2:
            item = {"image": item[0], "label": item[1]}
        elif not isinstance(item, Mapping):
            item = {"image": item}
        where = f"item {index} of the {type(self.data).__name__} with the images"
        if "image" not in item:
            raise UserError(f"{where} has no key 'image' ({', '.join(map(str, item))}); add it")
        record = {"name": f"#{index}", "max_pixels": self.max_pixels, **item}
        if isinstance(item["image"], str | os.PathLike):
            record["name"] = item.get("name", os.fsdecode(item["image"]))
        record["image"] = _image(item["image"], where)
        label = record.pop("label", None)
        if self.classes:
            record["label"] = -1 if label is None else _label(label, len(self.classes), where)
        return record

    def __repr__(self) -> str:
        return f"OwnSource({type(self.data).__name__}, {len(self)} images)"


def _image(image: Any, where: str) -> bytes | np.ndarray:
    """An image as records hold it."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | os.PathLike):
        try:
            return Path(image).expanduser().read_bytes()
        except OSError as error:
            path = quoted(os.fsdecode(image))
            raise UserError(f"cannot read {path} ({error.strerror}), {where}; correct the path") from None
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    if isinstance(image, np.ndarray) and image.dtype == np.uint8:
        if image.ndim == 2 or image.shape[2:] == (1,):
            return np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
        if image.ndim == 3 and image.shape[2] == 3:
            return image
    shape = getattr(image, "shape", None)
    what = f"a {type(image).__name__}" + (f" of {image.dtype}, shape {tuple(shape)}" if shape else "")
    raise UserError(f"the image of {where} is {what}; give {TAKEN}")


def _label(label: Any, classes: int, where: str) -> int:
    whole = isinstance(label, numbers.Integral) or getattr(label, "shape", None) == ()
    if not whole or not -1 <= int(label) < classes:
        raise UserError(
            f"the label of {where} is {label!r}; give the number of its class, 0 to {classes - 1}, or -1"
        )
    return int(label)
