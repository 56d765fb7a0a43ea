"""Images as random-access records: a folder, an address such as `table:FILE`, or a Python object."""

import collections
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from sparse_vis.data.decode import EXTENSIONS
from sparse_vis.data.folder import FolderSource, left_out
from sparse_vis.data.hf import HfSource
from sparse_vis.data.own import OwnSource
from sparse_vis.data.packed import METADATA, PackedSource
from sparse_vis.data.pictures import PictureSource, PictureSpec
from sparse_vis.data.scenes import SceneSource, SceneSpec
from sparse_vis.data.table import TableSource
from sparse_vis.data.tfds import TfdsSource
from sparse_vis.data.webdataset import WebdatasetSource
from sparse_vis.runtime.calls import renamed
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.names import escaped, quoted
from sparse_vis.runtime.paths import CLIENTS, as_path, in_bucket
from sparse_vis.runtime.progress import say_once
from sparse_vis.runtime.skipped import MAX_PIXELS

SPLITS = {"train", "training", "val", "valid", "validation", "test"}  # usual names of folders of splits
# Kind of an address KIND:REST -> its class, which is called as (REST, split=, data_dir=, max_pixels=).
ADDRESSES = {"tfds": TfdsSource, "table": TableSource, "webdataset": WebdatasetSource, "hf": HfSource}
IN_BUCKETS = ("folder", "packed", "table", "tfds")  # kinds of sources that can read from a bucket
OBJECT = "object"  # config.data.source of images in memory; config.data.path describes them
SHOWN = 4  # how many names of classes are printed


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

        Optional keys are `max_pixels`, the largest number of pixels that is decoded, and `labels`, int32, for
        images with sets of classes. Scenes and pictures have four `labels`, padded with -1, and also
        `objects`, the number of each object, and a `mask`, uint8 (H, W). Other keys are ignored.

        All sources of this package also have `about`, which says in words where the images are. A source may
        have `images_sha256`, which identifies the images and their order; `labels` (or None), every record's
        `label`, and `name_of(index)`, if these are known without reading the images; and `sets`, whether
        records have `labels`.
        """
        ...


def announce(source: Source) -> None:
    """Print, once per process, how many images and classes a source has, and notes on odd folders."""
    names, count = source.classes, len(source.classes)
    images = f"{len(source)} image{'s' * (len(source) > 1)}"
    classes = f"{count} class{'es' * (count > 1)}" if count else "no classes"
    left = left_out(getattr(source, "left_out", collections.Counter()))
    if not isinstance(source, FolderSource | PackedSource):
        say_once(f"{images} {source.about}, {classes}{left}")
        return
    shown = ", ".join(map(escaped, names[:SHOWN])) + (" …" if count > SHOWN else "")
    below = f", named by its subfolders ({shown})" if count else ""
    say_once(f"{images} in {source.path}, {classes}{below}{left}")
    for same in getattr(source, "same", [])[:SHOWN]:
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


def _flags_of_tools(path: str) -> AbstractContextManager[None]:
    """Context in which errors name the flags of the tools instead of settings; `path` is config.data.path."""
    flags = {"config.data.split": "--split", "config.data.source": "--input", "config.data.path": path}
    return renamed({f"--{setting}": flag for setting, flag in flags.items()} | flags)


def open_input(
    name: str, split: str | None = None, data_dir: str | None = None, max_pixels: int = MAX_PIXELS
) -> Source:
    """The images given as a tool's --input; the source has `images_sha256`.

    Args:
        name: folder of images or of packed images, or an address: one of ADDRESSES, a colon, and the rest.
        split, data_dir: of an address, as config.data.split and config.data.path; None for folders.

    Raises:
        UserError: the images cannot be read; a folder with a split or data_dir; a TFDS data set without them.
    """
    kind, colon, rest = name.partition(":")
    if not colon or kind not in ADDRESSES:
        for flag, value in (("--split", split), ("--data-dir", data_dir)):
            if value is not None:
                remedy = "leave it out, or give the subfolder itself as --input"
                kinds = " or ".join(f"{kind}:" for kind in ADDRESSES)
                raise UserError(f"{flag}={value} is only for an --input that begins with {kinds}; {remedy}.")
        with _flags_of_tools("--input"):
            _refuse_bucket("folder", name)
            return (PackedSource if (as_path(name) / METADATA).is_file() else FolderSource)(name, max_pixels)
    if kind == "tfds":
        for flag, value in (("--split", split), ("--data-dir", data_dir)):
            if value is None:
                raise UserError(f"--input={name} needs {flag} too, e.g. --split=train --data-dir=TFDS_DIR.")
    with _flags_of_tools("--data-dir"):
        _refuse_bucket(name, data_dir or "")
        return ADDRESSES[kind](rest, split=split or "", data_dir=data_dir or "", max_pixels=max_pixels)


def as_source(data: Any, classes: Sequence[str] | None = None, max_pixels: int = MAX_PIXELS) -> Source:
    """A source from what --input takes, or from an object that `OwnSource` takes, e.g. a list of paths.

    Raises UserError also for a TFDS address or a single image, or if `classes` are given for a folder or an
    address, which have classes of their own.
    """
    if isinstance(data, str | os.PathLike):
        if os.fspath(data).startswith("tfds:"):
            raise UserError(f"{data} needs a split: give the object tfds.data_source(NAME, split=SPLIT).")
        if Path(data).suffix.lower() in EXTENSIONS and as_path(data).expanduser().is_file():
            raise UserError(f"{data} is one image; give a list, [{os.fspath(data)!r}], or its folder.")
        source = open_input(os.path.expanduser(data), max_pixels=max_pixels)
        if classes is not None:
            own = ", ".join(map(escaped, source.classes[:SHOWN])) or "none"
            what = f"classes= is for pairs and objects, and images {source.about} have their own"
            raise UserError(f"{what} ({own}); leave it out.")
        return source
    return OwnSource(data, classes, max_pixels)


def _refuse_bucket(name: str, path: str) -> None:
    """Raise UserError for images in a bucket if their kind of source can only read from disks."""
    kind, _, rest = name.partition(":")
    if kind not in IN_BUCKETS and (in_bucket(path) or any(scheme in rest.lower() for scheme in CLIENTS)):
        where = f"config.data.path={path}" if in_bucket(path) else f"config.data.source={name}"
        raise UserError(
            f"{where} is in a bucket, from which {kind} cannot read; copy it to the disk of every machine, "
            f"or give images there as {', '.join(IN_BUCKETS)}."
        )


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
    """Build the source that a configuration names. Raises UserError if it cannot be read.

    Args:
        name: "scenes", "pictures", "folder", "packed", or an address, which begins with one of ADDRESSES.
        split: of scenes, pictures or an address; folder and packed: subfolder of `path`, or "" for `path`.
        path: folder of images, shards or pictures, or `data_dir` of an address; unused for scenes.
        seed, scenes, pictures: for scenes and pictures alone.
    """
    if name == "scenes":
        return SceneSource(scenes, split=split, seed=seed)
    _refuse_bucket(name, path)
    if name in ("pictures", "folder", "packed"):
        if not path:
            raise UserError("config.data.path is not set; give --config.data.path=FOLDER.")
        if name == "pictures":
            return PictureSource(path, pictures, split=split, seed=seed)
        kind = FolderSource if name == "folder" else PackedSource
        return kind(os.path.join(path, split) if split else path, max_pixels)
    if name == OBJECT:
        raise UserError(
            f"the images of this run were given to sparse_vis.train as {path}; call it again, or name images "
            "by --config.data.source and --config.data.path."
        )
    kind, _, rest = name.partition(":")
    if kind in ADDRESSES and rest:
        return ADDRESSES[kind](rest, split=split, data_dir=path, max_pixels=max_pixels)
    more = ", ".join(f"'{kind}:…'" for kind in ADDRESSES)
    raise UserError(f"unknown data source {name!r}; choose 'scenes', 'pictures', 'folder', 'packed', {more}.")
