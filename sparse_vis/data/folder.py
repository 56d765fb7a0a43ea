"""Image files as random-access records; checksums that identify the images of any source."""

import collections
import functools
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sparse_vis.data.decode import EXTENSIONS
from sparse_vis.runtime.errors import UserError, explained
from sparse_vis.runtime.names import escaped, quoted
from sparse_vis.runtime.paths import CLIENTS, as_path, in_bucket
from sparse_vis.runtime.skipped import MAX_PIXELS

# Files that are sources by themselves, as addresses (`sources.ADDRESSES`).
ADDRESSED = {
    ".csv": "table:",
    ".tsv": "table:",
    ".txt": "table:",
    ".tar": "webdataset:",
    ".parquet": "table:",  # of paths; for images inside the file, that source's error says what to do
}
KINDS = 8  # how many extensions of ignored files are printed
NAME_ERRORS = "surrogateescape"  # file names need not be UTF-8


class FilesSource:
    """Image files as records, in the order of `names`: paths below the folder `path`, all different.

    `labels` are numbers of `classes`, -1 for none; without classes, records have no label.
    """

    def __init__(
        self, path: str, names: list[str], labels: np.ndarray, classes: tuple[str, ...], max_pixels: int
    ):
        self.path, self.names, self.labels, self.classes = path, names, labels, classes
        self.max_pixels, self.images_sha256 = max_pixels, sha256_of(names)
        self.about = f"in {path}"

    def __len__(self) -> int:
        return len(self.names)

    def name_of(self, index: int) -> str:
        return self.names[index]

    def __getitem__(self, index: int) -> dict[str, Any]:
        name = self.names[index]
        with explained(OSError, f"cannot read {quoted(name)}", "restore the file or its permissions"):
            data = (as_path(self.path) / name).read_bytes()
        record = {"image": data, "name": name, "max_pixels": self.max_pixels}
        return record | {"label": int(self.labels[index])} if self.classes else record

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path!r}, {len(self)} images)"


class FolderSource(FilesSource):
    """All image files (EXTENSIONS) below a folder, sorted by path; other and hidden files are ignored.

    The first-level subfolders, if there are any, are the classes; an image beside them has label -1.

    Attributes:
        left_out: number of ignored files by extension; "hidden" for names that begin with a dot.
        same: groups of subfolders that are links to one folder; each of them is read.

    Raises:
        UserError: the folder is missing or holds no image, or a subfolder cannot be listed.
    """

    def __init__(self, path: str, max_pixels: int = MAX_PIXELS):
        names, self.left_out, self.same = _list_images(path)
        if not names:
            raise UserError(
                f"folder {path!r} holds no image ({', '.join(EXTENSIONS)}){left_out(self.left_out)}; "
                "put images there or correct --config.data.path."
            )
        classes = tuple(sorted({name.split("/")[0] for name in names if "/" in name}))
        number = {name: label for label, name in enumerate(classes)}
        parts = (name.partition("/") for name in names)
        labels = np.array([number[first] if slash else -1 for first, slash, _ in parts], np.int32)
        super().__init__(path, names, labels, classes, max_pixels)


def below_common(full: list[str]) -> tuple[str, list[str]]:
    """The folder that holds all of these files (absolute paths or addresses), and their paths below it."""
    scheme = next((scheme for scheme in CLIENTS if full[0].startswith(scheme)), "")
    bare = [name.removeprefix(scheme) for name in full]
    root = os.path.commonpath([os.path.dirname(name) for name in bare])
    return scheme + root, [os.path.relpath(name, root).replace(os.sep, "/") for name in bare]


@functools.lru_cache(maxsize=4)
def _objects(folder: str) -> dict[str, tuple[int, int]]:
    """`BucketPath.objects` of a folder; once in a process, as listing takes a second per thousand objects."""
    return as_path(folder).objects()


def _list_objects(path: str) -> tuple[list[str], collections.Counter, list[list[str]]]:
    """`_list_images` of a bucket, where there are no links."""
    names, others = [], collections.Counter()
    remedy = "correct --config.data.path, or its access."
    with explained(OSError, f"folder {path!r} cannot be listed", remedy):
        there = _objects(path)
    for name in there:
        extension = os.path.splitext(name)[1].lower()
        if any(part.startswith(".") for part in name.split("/")):
            others["hidden"] += 1
        elif extension in EXTENSIONS:
            names.append(name)
        else:
            others[extension or "without extension"] += 1
    return sorted(names), others, []


def _list_images(path: str) -> tuple[list[str], collections.Counter, list[list[str]]]:
    """List a folder: sorted relative paths of its images, with `/`, and FolderSource's `left_out` and `same`.

    Links are followed, except one to a folder that contains it.
    """
    if in_bucket(path):
        return _list_objects(path)
    if not (path and Path(path).is_dir()):
        what = f"{path!r} is a file" if Path(path).is_file() else f"folder {path!r} does not exist"
        address = ADDRESSED.get(os.path.splitext(path)[1].lower(), "")
        hint = f", or read it with --config.data.source={address}{path}" if address else ""
        raise UserError(f"{what}; give --config.data.path the folder of your images{hint}.")
    names, others, folders = [], collections.Counter(), collections.defaultdict(list)
    waiting: list[tuple[str, tuple]] = [("", ())]  # relative folder, and the folders that contain it
    while waiting:
        folder, above = waiting.pop()
        what = f"folder {quoted(str(Path(path, folder)))} cannot be listed"
        with explained(OSError, what, "restore its permissions, or take it out of --config.data.path."):
            about = os.stat(Path(path, folder))
            itself = about.st_dev, about.st_ino
            if itself in above:
                others["link to one of its parent folders"] += 1
                continue
            folders[itself].append((folder.rstrip("/"), above))
            with os.scandir(Path(path, folder)) as entries:
                for entry in entries:
                    name, extension = f"{folder}{entry.name}", os.path.splitext(entry.name)[1].lower()
                    if entry.name.startswith("."):
                        others["hidden"] += 1
                    elif _is(entry.is_dir):
                        waiting.append((f"{name}/", (*above, itself)))
                    elif extension in EXTENSIONS and (_is(entry.is_file) or entry.is_symlink()):
                        names.append(name)  # broken links too: reading them raises an error
                    else:
                        others[extension or "without extension"] += 1
    return sorted(names), others, list(_linked(folders.values()))


def _linked(folders: Iterable[list[tuple[str, tuple]]]) -> Iterator[list[str]]:
    """The names of each folder that has several. A folder is a list of (name, folders that contain it)."""
    for found in folders:
        # A subfolder of a folder with two names has two names too, with the same last part; leave it out.
        if len({(name.split("/")[-1], above[-1:]) for name, above in found}) > 1:
            yield sorted(name for name, _ in found)


def _is(kind) -> bool:
    try:
        return kind()
    except OSError:  # a circular link
        return False


def left_out(others: collections.Counter) -> str:
    """The numbers of ignored files, as "; skipped: 3 .txt"; "" if there were none."""
    listed = ", ".join(f"{count} {escaped(kind)}" for kind, count in others.most_common(KINDS))
    listed += " …" if len(others) > KINDS else ""
    return f"; skipped: {listed}" if others else ""


def sha256_of(names: list[str]) -> str:
    """SHA-256 of names of images, hexadecimal, which identifies the images without reading them."""
    return hashlib.sha256("\n".join(names).encode(errors=NAME_ERRORS)).hexdigest()


def files_sha256(folder: str | Path, names: Iterable[str], *, times: bool) -> str:
    """SHA-256, hexadecimal, of the names and sizes of files, and whether they exist.

    With `times`, also of their modification times. These distinguish files of equal size, as uncompressed
    images and label maps often are, but they change when a folder is copied.
    """
    found = hashlib.sha256()
    look = _objects(str(folder)).get if in_bucket(folder) else functools.partial(_size_and_time, str(folder))
    for name in names:
        known = look(name)
        about = f"{known[0]} {known[1] if times else ''}" if known else "missing"
        found.update(f"{name}\0{about}\n".encode(errors=NAME_ERRORS))
    return found.hexdigest()


def _size_and_time(folder: str, name: str) -> tuple[int, int] | None:
    try:
        stat = os.stat(os.path.join(folder, name))
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def images_sha256(source: Any, indices: Iterable[int], *, times: bool) -> str | None:
    """Checksum that identifies images of a source, in their order; None if the source has none (scenes).

    For image files it is `files_sha256` of them, for other sources the checksum of all images of the source.
    """
    if isinstance(source, FilesSource):
        return files_sha256(source.path, [source.names[int(i)] for i in indices], times=times)
    return getattr(source, "images_sha256", None)


def stamp(source: Any, indices: Iterable[int]) -> dict[str, str]:
    """The two checksums of its images that a shard stores: `times` includes modification times."""
    rows, kinds = list(indices), {"images": False, "times": True}
    return {name: images_sha256(source, rows, times=times) or "" for name, times in kinds.items()}


def note_times(names: list[str]) -> None:
    """Print a note if images of these shards have other modification times than when they were written."""
    if names:
        print(
            f"note: the images of {len(names)} finished shards ({names[0]} …) have new modification times, "
            "but the same names and sizes; if you replaced them, delete these shards.",
            flush=True,
        )
