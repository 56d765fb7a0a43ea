"""Random-access records: embedded scenes, a folder of images, a prepared TFDS data set."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

from sparse_vis.data.scenes import SceneSource, SceneSpec
from sparse_vis.errors import UserError

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")


class Source(Protocol):
    """Records by number; picklable, since worker processes get a copy.

    Attributes:
        classes: names of the classes that `label` numbers; empty without labels.
    """

    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns `image` (bytes of a file, or uint8 (H, W, 3)), `name` and, if there is one, `label` (int).

        Scenes add `mask` (H, W) uint8 and `labels` (4,) int32.
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
                f"Folder {path!r} holds no image ({', '.join(EXTENSIONS)}): "
                "put images there or correct --config.data.path"
            )
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
                f"Cannot read {name!r} ({error.strerror}): restore the file or its permissions"
            ) from None
        if self.classes:
            first, slash, _ = name.partition("/")
            record["label"] = self._label[first] if slash else -1
        return record

    def __repr__(self) -> str:
        return f"FolderSource({self.path!r}, {len(self)} images)"


def _list_images(path: str) -> list[str]:
    """Lists images below a folder as sorted relative paths with `/`; links are followed once."""
    if not Path(path).is_dir():
        raise UserError(f"Folder {path!r} does not exist: give --config.data.path the folder of your images")
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


class TfdsSource:
    """A data set that TFDS has prepared as ArrayRecord; neither TensorFlow nor network is needed to read it.

    Args:
        name: TFDS name, e.g. "imagenet2012" or "name/config:1.0.0".
        split: TFDS split, e.g. "train[:90%]".
        data_dir: folder in which the data set was prepared.

    Raises:
        UserError: not prepared there, not as ArrayRecord, unknown split, or records without `image`.
    """

    def __init__(self, name: str, *, split: str, data_dir: str):
        import tensorflow_datasets as tfds

        self.name, self.split, self.data_dir = name, split, data_dir
        prepare = (
            f"run `tfds build {name} --data_dir={data_dir} --file_format=array_record` "
            "(needs TensorFlow) or set --config.data.path to the folder that holds it"
        )
        try:
            builder = tfds.builder(name, data_dir=data_dir, try_gcs=False)
        except (tfds.core.DatasetNotFoundError, FileNotFoundError):
            raise UserError(f"TFDS does not know data set {name!r} in {data_dir!r}: {prepare}") from None
        if not builder.info.splits:
            raise UserError(f"TFDS data set {name!r} is not prepared in {data_dir!r}: {prepare}")
        if "image" not in builder.info.features:
            raise UserError(f"TFDS data set {name!r} has no feature 'image': choose an image data set")
        try:
            self._records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        except NotImplementedError:
            raise UserError(f"TFDS data set {name!r} is not stored as ArrayRecord: {prepare}") from None
        except ValueError as error:
            raise UserError(
                f"TFDS data set {name!r} has no split {split!r} ({str(error).splitlines()[0]}): "
                "correct --config.data.split"
            ) from None
        if not len(self._records):
            raise UserError(f"Split {split!r} of TFDS data set {name!r} is empty: choose a larger one")
        label = dict(builder.info.features).get("label")
        self.classes = tuple(label.names) if hasattr(label, "names") else ()

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        found = self._records[index]
        # The key is not kept by TFDS, so the position stands in where a data set has no file names.
        name = found["file_name"].decode() if "file_name" in found else f"{self.name}/{self.split}#{index}"
        record = {"image": found["image"], "name": name}
        if self.classes:
            record["label"] = int(found["label"])
        return record

    def __repr__(self) -> str:
        return f"TfdsSource({self.name!r}, split={self.split!r}, data_dir={self.data_dir!r})"


def make_source(name: str, *, split: str, path: str, seed: int, scenes: SceneSpec) -> Source:
    """Builds the source that a configuration names.

    Args:
        name: "scenes", "folder" or "tfds:<name>".
        split: scenes: "train", "validation" or "test"; folder: subfolder of `path` to read, "" for all of it;
            TFDS: any split string, e.g. "train[:90%]".
        path: the folder of images, or TFDS's data_dir; not read for scenes.
        seed: decides the scenes; not read otherwise.
        scenes: what scenes look like; not read otherwise.

    Raises:
        UserError: unknown name, or what the source itself finds missing.
    """
    if name == "scenes":
        return SceneSource(scenes, split=split, seed=seed)
    if name == "folder":
        return FolderSource(os.path.join(path, split) if split else path)
    if name.startswith("tfds:"):
        return TfdsSource(name.removeprefix("tfds:"), split=split, data_dir=path)
    raise UserError(f"Unknown data source {name!r}: choose 'scenes', 'folder' or 'tfds:<name>'")
