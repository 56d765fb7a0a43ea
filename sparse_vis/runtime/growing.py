"""Files to which a run appends its metrics, on disk or in a bucket, where objects cannot grow."""

import io
import os
import time
from pathlib import Path

from sparse_vis.runtime.paths import AnyPath, in_bucket

UPLOAD_SECONDS = 30  # between two uploads of an object
SHARE = 20  # and at least so many times what the last one took


class GrowingObject:
    """An object of a bucket to which a run appends: all is kept in memory, and uploaded again and again.

    `flush` uploads it if the last time is long enough ago and the bucket can be reached; `sync` and `close`
    upload it at once. What is there already stays.
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
        """Upload what is new, or raise an OSError."""
        if (size := len(self.content)) == self.uploaded:
            return
        began = time.monotonic()
        self.path.write_bytes(bytes(self.content))
        now = time.monotonic()
        self.uploaded, self.due = size, now + max(UPLOAD_SECONDS, SHARE * (now - began))

    close = sync


class GrowingFile(io.FileIO):
    """The same for a file on disk; nothing is kept in memory."""

    def __init__(self, path: Path):
        super().__init__(path, "ab")

    def write(self, data: bytes) -> int:
        """An OSError too if the file was deleted, to which writing would succeed."""
        os.stat(self.name)
        rest = memoryview(data)
        while rest:
            rest = rest[super().write(rest) :]
        return len(data)

    def sync(self) -> None:
        """Wait until all is on disk, or raise an OSError."""
        os.stat(self.name)
        os.fsync(self.fileno())


def growing(path: AnyPath) -> GrowingObject | GrowingFile:
    """An open file to append to, with `write`, `flush`, `sync` and `close`; created if needed."""
    return (GrowingObject if in_bucket(path) else GrowingFile)(path)
