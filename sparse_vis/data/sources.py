"""Random-access records: embedded scenes, a folder of images, packed images, a prepared TFDS data set."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from sparse_vis.data.packed import PackedSource
from sparse_vis.data.packed_format import METADATA, sha256_of
from sparse_vis.data.scenes import SceneSource, SceneSpec
from sparse_vis.data.tfds import TfdsSource
from sparse_vis.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")


@runtime_checkable
class Source(Protocol):
    """Records by number; picklable, since worker processes get a copy.

    Attributes:
        classes: names of the classes that `label` numbers; empty without labels.
    """

    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns `image` (bytes of a file, or uint8 (H, W, 3)), `name` and, if there is one, `label` (int).

        A source whose images have sets of classes adds `labels`, int32, whose −1 mean nothing: TFDS data sets
        with a sequence `labels`, and scenes, which have four places and `mask` (H, W) uint8 too.
        """
        ...


class FolderSource:
    """All JPEG, PNG and WebP files below a folder, by sorted path; other and hidden files are not listed.

    Labels are the names of the first-level subfolders, when there are any; an image beside them gets -1.

    Args:
        path: the folder.

    Raises:
        UserError: the folder is missing or holds no image.
    """

    def __init__(self, path: str):
        self.path = path
        self.names = _list_images(path)
        if not self.names:
            raise UserError(
                f"folder {path!r} holds no image ({', '.join(EXTENSIONS)}); "
                "put images there or correct --config.data.path."
            )
        self.images_sha256 = sha256_of(self.names)
        self.classes = tuple(sorted({name.split("/")[0] for name in self.names if "/" in name}))
        self._label = {name: label for label, name in enumerate(self.classes)}

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        name = self.names[index]
        try:
            record = {"image": Path(self.path, name).read_bytes(), "name": name}
        except OSError as error:
            raise UserError(
                f"cannot read {name!r} ({error.strerror}); restore the file or its permissions"
            ) from None
        if self.classes:
            first, slash, _ = name.partition("/")
            record["label"] = self._label[first] if slash else -1
        return record

    def __repr__(self) -> str:
        return f"FolderSource({self.path!r}, {len(self)} images)"


def _list_images(path: str) -> list[str]:
    """Lists images below a folder as sorted relative paths with `/`; links are followed once."""
    if not (path and Path(path).is_dir()):
        what = f"{path!r} is a file" if Path(path).is_file() else f"folder {path!r} does not exist"
        raise UserError(f"{what}; give --config.data.path the folder of your images.")
    names, seen = [], set()
    for folder, subfolders, files in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link back into the tree
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        images = [n for n in files if n.lower().endswith(EXTENSIONS) and not n.startswith(".")]
        names += [Path(folder, name).relative_to(path).as_posix() for name in images]
    return sorted(names)


def open_folder(path: str) -> FolderSource:
    """All images below the folder that a tool's --input names.

    Raises:
        UserError: the folder is missing or holds no image.
    """
    try:
        return FolderSource(path)
    except UserError as error:  # its remedy names the flag of main.py
        raise UserError(str(error).replace("--config.data.path", "--input")) from None


def open_input(
    name: str, split: str | None, data_dir: str | None
) -> FolderSource | PackedSource | TfdsSource:
    """The images that a tool's --input names; `images_sha256` of the source tells them from others.

    Args:
        name: folder of images or of packed images, or "tfds:<name>".
        split, data_dir: of a TFDS data set, see `TfdsSource`; None otherwise.

    Raises:
        UserError: nothing readable there; split or data_dir without TFDS, or TFDS without them.
    """
    tfds = name.startswith("tfds:")
    for flag, value in (("--split", split), ("--data-dir", data_dir)):
        if tfds and value is None:
            raise UserError(f"--input={name} needs {flag} too, e.g. --split=train --data-dir=TFDS_DIR.")
        if not tfds and value is not None:
            raise UserError(
                f"{flag}={value} is for --input=tfds:<name>; leave it out, --input can be a subfolder."
            )
    if not tfds:
        return PackedSource(name) if Path(name, METADATA).is_file() else open_folder(name)
    try:
        return TfdsSource(name.removeprefix("tfds:"), split=split, data_dir=data_dir)
    except UserError as error:  # its remedies name the flags of main.py
        text = str(error).replace("--config.data.path", "--data-dir")
        raise UserError(text.replace("--config.data.split", "--split")) from None


def make_source(name: str, *, split: str, path: str, seed: int, scenes: SceneSpec) -> Source:
    """Builds the source that a configuration names.

    Args:
        name: "scenes", "folder", "packed" or "tfds:<name>".
        split: scenes: "train", "validation" or "test"; folder and packed: subfolder of `path` to read, ""
            for `path` itself; TFDS: any split string, e.g. "train[:90%]".
        path: the folder of images or shards, or TFDS's data_dir; not read for scenes.
        seed: decides the scenes; not read otherwise.
        scenes: what scenes look like; not read otherwise.

    Raises:
        UserError: unknown name, or what the source itself finds missing.
    """
    if name == "scenes":
        return SceneSource(scenes, split=split, seed=seed)
    if name in ("folder", "packed"):
        if not path:
            raise UserError("config.data.path is not set; give --config.data.path=FOLDER.")
        kind = FolderSource if name == "folder" else PackedSource
        return kind(os.path.join(path, split) if split else path)
    if name.startswith("tfds:"):
        return TfdsSource(name.removeprefix("tfds:"), split=split, data_dir=path)
    raise UserError(f"unknown data source {name!r}; choose 'scenes', 'folder', 'packed' or 'tfds:<name>'.")
