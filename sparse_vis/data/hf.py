"""Data sets of the package `datasets`, `hf:NAME`: from the hub, from `save_to_disk`, or Parquet files."""

import contextlib
import glob
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sparse_vis.data.address import LABELS, expand, find_column, number_labels, split_address, with_split
from sparse_vis.data.folder import sha256_of
from sparse_vis.runtime import network
from sparse_vis.runtime.errors import UserError, explained, reason_of
from sparse_vis.runtime.names import quoted
from sparse_vis.runtime.skipped import MAX_PIXELS

IMAGES = ("image", "img", "picture", "photo", "jpg", "png")  # usual names of the column of images
PARQUET = "parquet:"
ARROW = ("dataset_dict.json", "state.json")  # in a folder of save_to_disk


class HfSource:
    """The rows of a data set as records; they are memory-mapped, so that processes share them.

    Args:
        address: NAME or NAME:CONFIG of the hub, a folder (of `save_to_disk`, or of a downloaded data set),
            or parquet:PATTERN, with {a,b}, {000..146}, * and {split}. #image=COLUMN,label=COLUMN follows,
            unless the columns have usual names or are the only ones of their kind; `label=` for no labels.
        split: e.g. "train" or, for data sets of the hub, "train[:90%]"; "" if there is only one.
        data_dir: folder in which `datasets` caches what it downloads or converts; "" for its own.

    Raises:
        UserError: the package, data set, split, column or images are missing, or cannot be read.
    """

    def __init__(self, address: str, *, split: str = "", data_dir: str = "", max_pixels: int = MAX_PIXELS):
        try:
            import datasets
        except ImportError:
            raise UserError(f"hf:{address} needs the package datasets; pip install datasets.") from None
        name, named = split_address(address, ("image", "label"))
        self.name, self.split, self.max_pixels = name, split, max_pixels
        what = f"data set hf:{name}"
        with _errors_of_datasets(name, what):
            data = _load(datasets, name, split, os.path.expanduser(data_dir) or None, what)
        if not len(data):
            raise UserError(f"{what}{f', split {split!r},' * bool(split)} is empty; give one with images.")
        self._image = _image_column(datasets, data.features, named.get("image"), what)
        label = find_column(data.features, named.get("label"), (*LABELS, "labels"), what)
        if label is None and "label" not in named:
            classes = [c for c, feature in data.features.items() if isinstance(feature, datasets.ClassLabel)]
            label = classes[0] if len(classes) == 1 else None
        self.labels, self.classes, self._sets = None, (), None
        feature = data.features.get(label)
        if inner := getattr(feature, "feature", None):  # sets of classes
            if not isinstance(inner, datasets.ClassLabel):
                raise UserError(f"column {label!r} of {what} is not a label; name another: #label=COLUMN.")
            self._sets, self.classes = label, tuple(inner.names)
        elif label:
            values = data.select_columns([label])[:][label]
            if isinstance(feature, datasets.ClassLabel):
                self.labels = np.array([-1 if value is None else value for value in values], np.int32)
                self.classes = tuple(feature.names)
            else:
                self.labels, self.classes = number_labels(values)
        self.sets = self._sets is not None
        self._short = Path(name).name if os.path.isdir(name) else name.partition(":")[0]
        files = [os.path.getsize(file["filename"]) for file in data.cache_files]
        self.images_sha256 = sha256_of([self._short, split, str(len(data)), *map(str, sorted(files))])
        self.about = f"in {f'split {split} of ' * bool(split)}{name}"
        data = data.select_columns([self._image, *([label] if self.sets else [])])
        if isinstance(data.features[self._image], datasets.Image):
            data = data.cast_column(self._image, datasets.Image(decode=False))
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def name_of(self, index: int) -> str:
        """The name of a record, made from its number: files in a data set need not have names."""
        return f"{self._short}{f'/{self.split}' * bool(self.split)}#{index}"

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        row, name = self._data[int(index)], self.name_of(index)
        image = row[self._image]
        if isinstance(image, dict):
            path, image = image.get("path"), image.get("bytes")
            if image is None and path:
                with explained(OSError, f"cannot read {quoted(path)}", f"restore the file of {name}"):
                    image = Path(path).read_bytes()
        if image is None:
            raise UserError(f"{quoted(name)} has no image, its row is empty; remove the row")
        record = {"image": image, "name": name, "max_pixels": self.max_pixels}
        if self.sets:
            record["labels"] = np.asarray(row[self._sets] or (), np.int32)
        elif self.classes:
            record["label"] = int(self.labels[index])
        return record

    def __repr__(self) -> str:
        return f"HfSource({self.name!r}, split={self.split!r}, {len(self)} images)"


def _load(datasets: Any, name: str, split: str, cache: str | None, what: str) -> Any:
    """The one `datasets.Dataset` that an address and a split name."""
    if name.startswith(PARQUET):
        texts = expand(os.path.expanduser(with_split(name.removeprefix(PARQUET), split)))
        files = [file for text in texts for file in sorted(glob.glob(text)) or [text]]
        if missing := [file for file in files if not os.path.isfile(file)]:
            raise UserError(
                f"Parquet file {quoted(missing[0])} does not exist; copy it there, or correct "
                "--config.data.source."
            )
        return datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=cache)
    folder = os.path.expanduser(name)
    if not os.path.isdir(folder):
        place, _, config = name.partition(":")
        away = network.unreachable()
        with network.offline() if away else contextlib.nullcontext():
            try:
                found = datasets.load_dataset(place, config or None, split=split or None, cache_dir=cache)
            except ConnectionError as error:
                raise ConnectionError(away or str(error)) from None
    elif any(os.path.isfile(os.path.join(folder, file)) for file in ARROW):
        found = datasets.load_from_disk(folder)
        if isinstance(found, datasets.Dataset):
            if split not in ("", str(found.split)):
                raise UserError(f"{what} is a single split, not {split!r}; set --config.data.split= (empty).")
            return found
    else:
        found = datasets.load_dataset(folder, split=split or None, cache_dir=cache)
    if isinstance(found, datasets.Dataset):
        return found
    split = split or (next(iter(found)) if len(found) == 1 else "")
    if split not in found:
        splits = " or ".join(map(quoted, found))
        raise UserError(f"{what} has {'no split ' + repr(split) if split else 'several splits'}; set "
                        f"--config.data.split to {splits}.")  # fmt: skip
    return found[split]


@contextlib.contextmanager
def _errors_of_datasets(name: str, what: str) -> Iterator[None]:
    """Context that turns errors of `datasets`, which have no common class, into UserErrors."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        cause = error.__cause__ or error
        reason = reason_of(cause)
        if "split" in reason.lower() or "instruction" in reason.lower():
            raise UserError(f"{what} cannot be read ({reason}); correct --config.data.split.") from None
        if file := getattr(cause, "filename", None):  # which of many files, or a file in the cache
            reason = f"{reason}: {quoted(os.fsdecode(file))}"
        if os.path.isdir(os.path.expanduser(name)) or name.startswith(PARQUET):
            raise UserError(f"{what} cannot be read ({reason}); copy it again, or write it again.") from None
        place, _, config = name.partition(":")
        load = f"load_dataset({place!r}{f', {config!r}' * bool(config)})"
        raise UserError(
            f"{what} is not a folder here and cannot be downloaded ({reason}); where there is a network, run "
            f'`python -c "from datasets import load_dataset as l; {load.replace("load_dataset", "l", 1)}'
            ".save_to_disk('FOLDER')\"`, copy FOLDER here, and give --config.data.source=hf:FOLDER."
        ) from None


def _image_column(datasets: Any, features: Any, named: str | None, what: str) -> str:
    def holds_images(feature: Any) -> bool:
        if isinstance(feature, dict):
            return "bytes" in feature
        binary = isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")
        return binary or isinstance(feature, datasets.Image)

    possible = [column for column, feature in features.items() if holds_images(feature)]
    found = find_column(features, named, (), what) or find_column(possible, None, IMAGES, what)
    found = found or (possible[0] if len(possible) == 1 else None)
    if found is None or found not in possible:
        which = f"the column {found!r} of {what} holds no" if found else f"{what} has no column of"
        if not found and possible:
            which = f"{what} has several columns of"
        there = ", ".join(map(quoted, possible if possible and not found else features))
        raise UserError(f"{which} images ({there}); name one after the address: #image=COLUMN.")
    return found
