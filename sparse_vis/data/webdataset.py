"""Images in tar files, as WebDataset writes them: `webdataset:PATTERN`; nothing is extracted."""

import collections
import contextlib
import fcntl
import glob
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sparse_vis.data import tar_index
from sparse_vis.data.address import expand, split_address, with_split
from sparse_vis.data.folder import NAME_ERRORS
from sparse_vis.runtime.errors import UserError, explained
from sparse_vis.runtime.names import quoted
from sparse_vis.runtime.progress import say_once
from sparse_vis.runtime.skipped import MAX_PIXELS

SUFFIX = ".tars"  # of indices


class WebdatasetSource:
    """The images of tar files, in the order of the pattern and, within a tar, of its members.

    Consecutive members whose names agree up to the first dot are a sample: an image, and its label in `.cls`
    or `.json`. Names are TAR/MEMBER. An index beside the first tar, or in `data_dir`, says where each image
    lies (`tar_index.py`); the first process that needs it makes it, and makes it again when a tar has another
    size or modification time.

    Args:
        address: PATTERN or PATTERN#image=EXTENSION,label=KEY; the pattern may have {a,b}, {000..146}, * and
            {split}. KEY is a key of the `.json` members, "cls", or empty for no labels.
        split: replaces {split}; "" if the pattern has none.

    Attributes:
        left_out: number of unused members by extension, and of samples without an image.

    Raises:
        UserError: a tar is missing or damaged, there is no image, or the index cannot be written.
    """

    def __init__(self, address: str, *, split: str = "", data_dir: str = "", max_pixels: int = MAX_PIXELS):
        pattern, named = split_address(address, ("image", "label"))
        self.pattern, self.max_pixels = os.path.expanduser(with_split(pattern, split)), max_pixels
        self.tars = _find(self.pattern)
        root = os.path.commonpath([os.path.dirname(tar) for tar in self.tars])
        shown = [os.path.relpath(tar, root) for tar in self.tars]
        image, label = named.get("image"), named.get("label")
        settings = json.dumps([shown, image, label]).encode()
        name = f"{Path(self.tars[0]).stem}-{hashlib.sha256(settings).hexdigest()[:12]}{SUFFIX}"
        self.index = Path(os.path.expanduser(data_dir) or os.path.dirname(self.tars[0]), name)
        header = self._open(shown, image, label)
        self.classes, self.images_sha256 = tuple(header["classes"]), header["images_sha256"]
        self.left_out = collections.Counter(header["left_out"])
        self._shown = shown
        self.about = f"in {len(shown)} tar{'s' * (len(shown) > 1)} of {self.pattern}"

    def _open(self, shown: list[str], image: str | None, label: str | None) -> dict[str, Any]:
        """Map the index into memory, after making it if there is none that fits; returns its header."""
        if not self._fits():
            what = f"the index {self.index} cannot be written"
            with explained(OSError, what, "set --config.data.path to a folder for it."):
                self.index.parent.mkdir(parents=True, exist_ok=True)
                if not os.access(self.index.parent, os.W_OK):
                    raise PermissionError(13, "Permission denied")
                with _alone(self.index):
                    if not self._fits():  # another process may have made it
                        tar_index.build(self.index, self.tars, shown, image, label)
                        self._entries = tar_index.read(self.index)
                        say_once(f"wrote {self.index}, an index of where the images lie in the tars")
        return self._entries.header

    def _fits(self) -> bool:
        """Whether there is an index of these tars as they are now; if so, it is mapped into memory."""
        try:
            self._entries = tar_index.read(self.index)
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError):
            say_once(f"note: the index {self.index} is damaged and is made again")
            return False
        header = self._entries.header
        for tar, (name, size), time in zip(self.tars, header["shards"], header["times"], strict=True):
            now = os.stat(tar)
            if (now.st_size, now.st_mtime_ns) != (size, time):
                say_once(f"note: {name} has changed, so its index {self.index} is made again")
                return False
        return True

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_entries"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._entries = tar_index.read(self.index)  # shared with other processes by the page cache

    def __len__(self) -> int:
        return len(self._entries.samples)

    @property
    def labels(self) -> np.ndarray | None:
        """The class of every record, -1 for none; None without classes."""
        return self._entries.samples["label"] if self.classes else None

    def name_of(self, index: int) -> str:
        samples, names = self._entries.samples, self._entries.names
        start = samples[index - 1]["name"] if index else 0
        member = names[start : samples[index]["name"]].tobytes().decode(errors=NAME_ERRORS)
        return f"{self._shown[samples[index]['shard']]}/{member}"

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        sample, name = self._entries.samples[index], self.name_of(index)
        tar, size = self.tars[sample["shard"]], int(sample["size"])
        with explained(OSError, f"cannot read {quoted(tar)}", "restore it"), open(tar, "rb", 0) as file:
            data = os.pread(file.fileno(), size, int(sample["offset"]))
        if len(data) != size:
            raise UserError(f"{quoted(tar)} is shorter than before, so {quoted(name)} is cut; restore it")
        record = {"image": data, "name": name, "max_pixels": self.max_pixels}
        return record | {"label": int(sample["label"])} if self.classes else record

    def __repr__(self) -> str:
        return f"WebdatasetSource({self.pattern!r}, {len(self)} images)"


def _find(pattern: str) -> list[str]:
    """The absolute paths of the tars of a pattern."""
    found = []
    for text in expand(pattern):
        there = [text] if os.path.isfile(text) else sorted(glob.glob(text))
        if not there:
            raise UserError(
                f"tar {quoted(text)} does not exist; copy it there, or correct --config.data.source."
            )
        found += map(os.path.abspath, there)
    if len({*found}) < len(found):
        raise UserError(f"{pattern!r} names a tar twice; correct --config.data.source.")
    if folder := next((tar for tar in found if not os.path.isfile(tar)), None):
        raise UserError(f"{quoted(folder)} is a folder, not a tar; give e.g. webdataset:{folder}/*.tar.")
    return found


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Context in which no other process of this machine makes the index; without effect on NFS."""
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process, which makes the index {path}", flush=True)
            fcntl.flock(folder, fcntl.LOCK_EX)
        except OSError:  # NFS: several processes may do the same work, and the file of the last one stays
            pass
        yield
    finally:
        os.close(folder)
