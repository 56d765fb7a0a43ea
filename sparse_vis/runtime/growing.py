"""Files to which a run appends its metrics, on disk or in a bucket, where objects cannot grow."""

import io
import os
import time
from pathlib import Path

from sparse_vis.runtime.paths import AnyPath, in_bucket

UPLOAD_SECONDS = 30  # between two uploads of an object
SHARE = 20  # at least this many times the duration of the last upload pass before the next


class GrowingObject:
    """An object of a bucket to which a run appends: its content is kept in memory and uploaded as a whole.

    `flush` uploads it at most every UPLOAD_SECONDS, and if the bucket can be reached; `sync` and `close`
    upload it at once. An existing object is continued.
    """

    def __init__(self, path: AnyPath):
        self.path, self.due = path, 0.0
        self.content = bytearray(path.read_bytes() if path.exists() else b"")
        self.uploaded = len(self.content)

    def write(self, data: bytes) -> int:
        self.content += data
        return len(data)

    def flush(self) -> None:
        if time.monotonic() >= self.due:
            try:
                self.sync()
            except OSError:  # all is still in memory: only `sync` and `close` must not fail
                self.due = time.monotonic() + UPLOAD_SECONDS

    def sync(self) -> None:
        """Upload the content if it has changed, or raise OSError."""
        if (size := len(self.content)) == self.uploaded:
            return
        began = time.monotonic()
        self.path.write_bytes(bytes(self.content))
        now = time.monotonic()
        self.uploaded, self.due = size, now + max(UPLOAD_SECONDS, SHARE * (now - began))

    close = sync


class GrowingFile(io.FileIO):
    """A file on disk with the methods of GrowingObject; nothing is kept in memory."""

    def __init__(self, path: Path):
        super().__init__(path, "ab")

    def write(self, data: bytes) -> int:
        os.stat(self.name)  # an OSError if the file was deleted: writing to it would still succeed
        rest = memoryview(data)
        while rest:
            rest = rest[super().write(rest) :]
        return len(data)

    def sync(self) -> None:
        """Wait until all is on disk, or raise OSError."""
        os.stat(self.name)
        os.fsync(self.fileno())


def growing(path: AnyPath) -> GrowingObject | GrowingFile:
    """An open file to append to, with `write`, `flush`, `sync` and `close`; created if needed."""
    return (GrowingObject if in_bucket(path) else GrowingFile)(path)
