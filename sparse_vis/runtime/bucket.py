"""Paths in buckets, gs:// and s3://, with the methods of pathlib.Path that this package uses.

A bucket holds objects, which appear whole or not at all, and cannot grow or be renamed. It has no folders: a
path counts as one while the name of some object begins with it.
"""

import errno
import logging
import os
import pathlib
import types
from collections.abc import Iterator

# Else etils uses TensorFlow's client where TensorFlow is installed, and fsspec's elsewhere.
os.environ.setdefault("EPATH_USE_TF", "false")

import fsspec
from etils.epath import backend, gpath

gpath._is_tf_installed.cache_clear()  # it may have been asked before the variable was set
for _kind in ("gs", "gcs", "s3"):  # listings are not kept, because other processes write there too
    fsspec.config.conf.setdefault(_kind, {}).setdefault("use_listings_cache", False)

for _client in ("gcsfs", "s3fs"):  # they log errors, with tracebacks, that they also raise
    logging.getLogger(_client).setLevel(logging.CRITICAL)


class BucketPath(gpath.PosixGPath):
    """A path in a bucket. Its methods raise OSErrors with a `strerror`, whatever the client raises."""

    def _call(self, method: str, *arguments, **more):
        """Call a method of fsspec's client; whatever it raises becomes an OSError."""
        try:
            return getattr(backend.fsspec_backend.fs(str(self)), method)(*arguments, **more)
        except FileNotFoundError:
            raise FileNotFoundError(errno.ENOENT, "no such object, or no such bucket", str(self)) from None
        except Exception as error:  # e.g. HTTP errors, missing credentials, timeouts
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise OSError(getattr(error, "errno", None) or errno.EIO, reason, str(self)) from error

    def _type(self) -> str | None:
        try:
            return self._call("info", str(self))["type"]
        except FileNotFoundError:
            return None

    def exists(self) -> bool:
        return self._type() is not None

    def is_dir(self) -> bool:
        return self._type() == "directory"

    def is_file(self) -> bool:
        return self._type() == "file"

    def resolve(self) -> "BucketPath":
        return self

    absolute = expanduser = resolve

    def iterdir(self) -> "Iterator[BucketPath]":
        names = {name.rstrip("/") for name in self._call("ls", str(self), detail=False)}
        return self._of(names - {str(self).partition("://")[2]})

    def glob(self, pattern: str) -> "Iterator[BucketPath]":
        return self._of(self._call("glob", str(self / pattern)))

    def _of(self, names: set[str] | list[str]) -> "Iterator[BucketPath]":
        scheme = str(self).partition("://")[0]
        return (type(self)(f"{scheme}://{name}") for name in sorted(names))

    def objects(self) -> dict[str, tuple[int, int]]:
        """Size in bytes and time of writing in nanoseconds of every object below, by its name there."""
        found = self._call("find", str(self), detail=True)
        start = len(str(self).partition("://")[2]) + 1
        return {name[start:]: _size_and_time(info) for name, info in found.items() if name[start:]}

    def stat(self) -> types.SimpleNamespace:
        """`st_size` in bytes, and `st_mtime_ns`, when the object was written."""
        size, written = _size_and_time(self._call("info", str(self)))
        return types.SimpleNamespace(st_size=size, st_mtime_ns=written)

    def open(self, mode: str = "rb"):
        """The object as a file to read; `write_bytes` and `upload` write."""
        if mode != "rb":
            raise OSError(errno.EROFS, f"an object cannot be opened with mode {mode!r}", str(self))
        return self._call("open", str(self), mode)

    def read_bytes(self, start: int | None = None, end: int | None = None) -> bytes:
        """The content, or its bytes from `start` to before `end`."""
        return self._call("cat_file", str(self), start=start, end=end)

    def read_text(self) -> str:
        return self.read_bytes().decode()

    def write_bytes(self, data: bytes) -> None:
        self._call("pipe_file", str(self), data)

    def create(self, data: bytes) -> bool:
        """Write an object of this content unless there is one; returns whether it was written."""
        try:
            self._call("pipe_file", str(self), data, mode="create")  # the server refuses it if there is one
        except OSError:
            if self.exists():
                return False
            raise
        return True

    def upload(self, file: pathlib.Path) -> None:
        """Write an object with the content of a local file."""
        self._call("put_file", str(file), str(self))

    def download(self, file: pathlib.Path) -> None:
        """Write the content into a local file."""
        self._call("get_file", str(self), str(file))

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            self._call("rm_file", str(self))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Does nothing: a bucket has no folders."""


def _size_and_time(info: dict) -> tuple[int, int]:
    written = info.get("mtime") or info.get("LastModified")  # gcsfs, s3fs; a folder has none
    return info["size"], round(written.timestamp() * 1e9) if written else 0
