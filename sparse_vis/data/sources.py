"""Random-access records: scenes and pictures, a folder of images, packed images, a prepared TFDS data set."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from sparse_vis.data.folder import FolderSource, left_out
from sparse_vis.data.packed import METADATA, PackedSource
from sparse_vis.data.pictures import PictureSource, PictureSpec
from sparse_vis.data.scenes import SceneSource, SceneSpec
from sparse_vis.data.tfds import TfdsSource
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.names import escaped, quoted
from sparse_vis.runtime.progress import say_once
from sparse_vis.runtime.skipped import MAX_PIXELS

SPLITS = {"train", "training", "val", "valid", "validation", "test"}  # usual names of folders of splits
SHOWN = 4  # class names that are printed


@runtime_checkable
class Source(Protocol):
    """Random-access records; picklable, because worker processes get a copy.

    Attributes:
        classes: names of the classes, indexed by `label`; empty without labels.
    """

    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A record: `image` (bytes of a file, or uint8 (H, W, 3)), `name` and, if known, `label` (int).

        Optional keys are `max_pixels`, the largest number of pixels that is decoded, and for images with
        sets of classes `labels`, int32, padded with −1: TFDS data sets with a sequence `labels`, and scenes
        and pictures, which have four entries, and a `mask` (H, W) uint8 too. Other keys are ignored.
        """
        ...


def announce(source: Source) -> None:
    """Print, once per process, a source's numbers of images and classes, and notes on surprising folders."""
    names, count = source.classes, len(source.classes)
    images = f"{len(source)} image{'s' * (len(source) > 1)}"
    classes = f"{count} class{'es' * (count > 1)}" if count else "no classes"
    if not isinstance(source, FolderSource | PackedSource):
        name = source.name if isinstance(source, TfdsSource) else f"the {source.kind}"
        say_once(f"{images} in split {source.split} of {name}, {classes}")
        return
    shown = ", ".join(map(escaped, names[:SHOWN])) + (" …" if count > SHOWN else "")
    below = f", named by its subfolders ({shown})" if count else ""
    left = left_out(source.left_out) if isinstance(source, FolderSource) else ""
    say_once(f"{images} in {source.path}, {classes}{below}{left}")
    for same in source.same[:SHOWN] if isinstance(source, FolderSource) else ():
        say_once(
            f"note: {' and '.join(map(quoted, same))} in {source.path} are links to the same folder, so "
            f"its images are used {len(same)} times, once under each name"
        )
    if len(SPLITS.intersection(map(str.lower, names))) > 1:
        first = next((name for name in names if name.lower().startswith("train")), names[0])
        say_once(
            f"note: the subfolders {shown} are used as classes, but their names look like splits; to use "
            f"only one of them, give --config.data.split={first} (in other commands: "
            f"--input={source.path}/{first})"
        )
    elif count == 1:
        say_once(f"note: {shown} is the only class, so there is nothing to classify")


@contextlib.contextmanager
def _flags_of_tools(path: str) -> Iterator[None]:
    """Name in errors the flags of the tools, `path` for the folder, instead of those of main.py."""
    try:
        yield
    except UserError as error:
        text = str(error).replace("--config.data.path", path)
        raise UserError(text.replace("--config.data.split", "--split")) from None


def open_folder(path: str, max_pixels: int = MAX_PIXELS) -> FolderSource:
    """All images below the folder given as a tool's --input; raises UserError as FolderSource."""
    with _flags_of_tools("--input"):
        return FolderSource(path, max_pixels)


def open_input(
    name: str, split: str | None, data_dir: str | None, max_pixels: int = MAX_PIXELS
) -> FolderSource | PackedSource | TfdsSource:
    """The images given as a tool's --input; the source's `images_sha256` identifies them.

    Args:
        name: folder of images or of packed images, or "tfds:<name>".
        split, data_dir: arguments of `TfdsSource`; None for folders.

    Raises:
        UserError: nothing can be read; split or data_dir given without TFDS, or missing with it.
    """
    tfds = name.startswith("tfds:")
    for flag, value in (("--split", split), ("--data-dir", data_dir)):
        if tfds and value is None:
            raise UserError(f"--input={name} needs {flag} too, e.g. --split=train --data-dir=TFDS_DIR.")
        if not tfds and value is not None:
            remedy = "leave it out, or give the subfolder itself as --input"
            raise UserError(f"{flag}={value} is only for --input=tfds:<name>; {remedy}.")
    if not tfds:
        packed = Path(name, METADATA).is_file()
        return PackedSource(name, max_pixels) if packed else open_folder(name, max_pixels)
    with _flags_of_tools("--data-dir"):
        return TfdsSource(name.removeprefix("tfds:"), split=split, data_dir=data_dir, max_pixels=max_pixels)


def make_source(
    name: str,
    *,
    split: str,
    path: str,
    seed: int,
    scenes: SceneSpec,
    pictures: PictureSpec = PictureSpec(),
    max_pixels: int = MAX_PIXELS,
) -> Source:
    """Build the source that a configuration names.

    Args:
        name: "scenes", "pictures", "folder", "packed" or "tfds:<name>".
        split: of scenes, pictures or TFDS; folder and packed: subfolder of `path`, or "" for `path` itself.
        path: folder of images, shards or pictures, or TFDS's data_dir; unused for scenes.
        seed, scenes, pictures: content of scenes and pictures; unused otherwise.

    Raises:
        UserError: an unknown name or an empty path, and the errors of the source itself.
    """
    if name == "scenes":
        return SceneSource(scenes, split=split, seed=seed)
    if name in ("pictures", "folder", "packed"):
        if not path:
            raise UserError("config.data.path is not set; give --config.data.path=FOLDER.")
        if name == "pictures":
            return PictureSource(path, pictures, split=split, seed=seed)
        kind = FolderSource if name == "folder" else PackedSource
        return kind(os.path.join(path, split) if split else path, max_pixels)
    if name.startswith("tfds:"):
        return TfdsSource(name.removeprefix("tfds:"), split=split, data_dir=path, max_pixels=max_pixels)
    raise UserError(
        f"unknown data source {name!r}; choose 'scenes', 'pictures', 'folder', 'packed' or 'tfds:<name>'."
    )
