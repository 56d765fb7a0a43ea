"""Any Python object with `__len__` and `__getitem__` as a source: a list of paths, arrays, a data set."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sparse_vis.data.address import number_labels
from sparse_vis.data.folder import FilesSource, below_common
from sparse_vis.runtime.calls import class_names
from sparse_vis.runtime.errors import UserError, explained
from sparse_vis.runtime.names import quoted
from sparse_vis.runtime.skipped import MAX_PIXELS

MOST_CLASSES = 100_000  # if classes have no names; a larger label is surely no number of a class
TAKEN = "a path, the bytes of a file, a PIL image or uint8 pixels (H, W, 3) or (H, W)"


class OwnSource:
    """The items of an object as records, in its order.

    An item is an image, a pair (image, label), or a dict with `image` and, if known, `label` and `name`;
    other keys are kept. An image is a path, the bytes of a file, a PIL image, or uint8 pixels (H, W, 3) or
    (H, W). A label is the number or the name of a class, or None. Item i must depend on i alone, and the
    object must be picklable if there are worker processes. The names of the classes are `classes`, else
    `data.classes`; without names, records have no labels, unless `read_labels` finds some.

    Raises:
        UserError: `data` is empty or has no `__len__` or `__getitem__`, its first item is none of the above,
            or `classes` are not names.
    """

    def __init__(self, data: Any, classes: Sequence[str] | None = None, max_pixels: int = MAX_PIXELS):
        kind = type(data).__name__
        if isinstance(data, Mapping) or not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
            raise UserError(
                f"a {kind} is not a data set; give an object with __len__ and __getitem__ by number, "
                f"whose items are {TAKEN}, or pairs of such an image and a label."
            )
        if hasattr(data, "iloc"):  # pandas, whose [i] is a column or a row's name
            how = "its .tolist()"
            if hasattr(data, "columns"):
                how = "list(zip(table[PATHS], table[LABELS])) of two of its columns"
            raise UserError(f"a {kind} does not give its items by their number; give {how}.")
        if not len(data):
            raise UserError(f"the {kind} with the images is empty; give one with images.")
        named = getattr(data, "classes", None)
        named = named if isinstance(named, list | tuple | np.ndarray) else ()
        self.data, self.max_pixels = data, max_pixels
        self.classes = tuple(map(str, named)) if classes is None else class_names(classes)
        self.about = f"in a {kind}"
        self[0]

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        item, where = self.item(index), self._where(index)
        record = {"name": f"#{index}", "max_pixels": self.max_pixels, **item}
        if isinstance(item["image"], str | os.PathLike):
            record["name"] = item.get("name", os.fsdecode(item["image"]))
        record["image"] = _image(item["image"], where)
        label = record.pop("label", None)
        if self.classes:
            record["label"] = _label(label, self.classes, where)
        return record

    def _where(self, index: int) -> str:
        return f"item {index} of the {type(self.data).__name__} with the images"

    def item(self, index: int) -> Mapping[str, Any]:
        """An item as a dict; its image is not read."""
        try:
            item = self.data[index]
        except (UserError, MemoryError):
            raise
        except Exception as error:  # of the user's own code, which may raise anything
            reason = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
            what = f"{self._where(index)} cannot be read ({reason})"
            raise UserError(f"{what}; correct its __getitem__, which raised this") from error
        if isinstance(item, tuple) and len(item) == 2:
            return {"image": item[0], "label": item[1]}
        if not isinstance(item, Mapping):
            return {"image": item}
        if "image" not in item:
            what = f"{self._where(index)} has no key 'image' ({', '.join(map(str, item))})"
            raise UserError(f"{what}; add it")
        return item

    def read_labels(self, on_error: str = "stop") -> None:
        """Read every item once for its label; sets `labels` and, if the classes have no names yet, `classes`.

        These are then the labels, sorted, if they are names, else the numbers from 0 to the largest label.
        With `on_error` "skip", an item that cannot be read has no label.

        Raises:
            UserError: a label is neither number nor name, labels are of both kinds without `classes`, or an
                item cannot be read.
        """
        given, unread = [], []
        for index in range(len(self)):
            try:
                given.append(self.item(index).get("label"))
            except UserError as error:
                if on_error == "stop":
                    raise UserError(f"{error}, or pass on_error='skip'.") from error.__cause__
                given.append(None)
                unread.append(str(error))
        if unread:
            print(f"note: {len(unread)} items cannot be read; the first: {unread[0]}", flush=True)
        if not self.classes and any(isinstance(label, str) for label in given):
            for index, label in enumerate(given):
                if not isinstance(label, str) and not _missing(label):
                    what = f"the label of {self._where(index)} is {label!r}, and those of others are names"
                    raise UserError(f"{what}; give names alone, or numbers alone.")
            self.labels, self.classes = number_labels(given)
            return
        if not self.classes:
            numbers = (_number(label) for label in given if not _missing(label))
            largest = max((number for number in numbers if number is not None), default=-1)
            if largest >= MOST_CLASSES:
                what = f"the largest label of the {type(self.data).__name__} is {largest}"
                raise UserError(f"{what}; give labels that count from 0 to the number of classes.")
            self.classes = tuple(map(str, range(largest + 1)))
        labels = [_label(label, self.classes, self._where(index)) for index, label in enumerate(given)]
        self.labels = np.array(labels, np.int32)

    def files(self) -> FilesSource | None:
        """The images, if all are paths, named by their paths below the folder that holds all; else None."""
        full = []
        for index in range(len(self)):
            item = self.item(index)
            if "name" in item or not isinstance(item["image"], str | os.PathLike):
                return None
            full.append(os.path.abspath(os.path.expanduser(os.fsdecode(item["image"]))))
        return FilesSource(*below_common(full), np.full(len(full), -1, np.int32), (), self.max_pixels)

    def __repr__(self) -> str:
        return f"OwnSource({type(self.data).__name__}, {len(self)} images)"


def _image(image: Any, where: str) -> bytes | np.ndarray:
    """An image as records hold it."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | os.PathLike):
        with explained(OSError, f"cannot read {quoted(os.fsdecode(image))}", f"correct the path of {where}"):
            return Path(image).expanduser().read_bytes()
    if isinstance(image, Image.Image):
        image = np.asarray(image.convert("RGB"))
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.size:
        if image.ndim == 2 or image.shape[2:] == (1,):
            return np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
        if image.ndim == 3 and image.shape[2] == 3:
            return image
    shape = getattr(image, "shape", None)
    what = f"a {type(image).__name__}" + (f" of {image.dtype}, shape {tuple(shape)}" if shape else "")
    raise UserError(f"the image of {where} is {what}; give {TAKEN}")


def _missing(label: Any) -> bool:
    return label is None or (isinstance(label, float) and label != label)


def _number(label: Any) -> int | None:
    """A label as int; None if it is not a whole number."""
    try:
        number = int(label) if getattr(label, "shape", ()) == () and not isinstance(label, str) else None
    except (TypeError, ValueError, OverflowError):
        return None
    return number if number is not None and number == label else None


def _label(label: Any, classes: tuple[str, ...], where: str) -> int:
    """The number of a class given by its number or name; -1 for none."""
    if _missing(label):
        return -1
    if isinstance(label, str):
        name = label.strip()
        number = classes.index(name) if name in classes else -1 if name in ("", "-1") else None
    else:
        number = _number(label)
    if number is None or not -1 <= number < len(classes):
        range_of = f", 0 to {len(classes) - 1}," if classes else ""
        how = f"the number of its class{range_of} or its name, or None for no class"
        raise UserError(f"the label of {where} is {label!r}; give {how}")
    return number
