"""skipped.txt: one line for each image that a command or a run could not use."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.files import write_whole
from sparse_vis.runtime.names import escaped

FILE = "skipped.txt"
Skips = list[tuple[str, str]]  # (name, reason) of images that could not be used


def lines(skips: Iterable[tuple[str, str]]) -> list[str]:
    """A line for each image, without duplicates: escaped name, tab, reason."""
    return list(dict.fromkeys(f"{escaped(name)}\t{' '.join(reason.split())}\n" for name, reason in skips))


def append(folder: Path, new: Iterable[str]) -> None:
    """Append to the folder's skipped.txt those of the lines that it does not have yet, or raise OSError."""
    if not (new := [line.encode(errors="backslashreplace") for line in new]):
        return
    path = folder / FILE
    there = path.read_bytes() if path.exists() else b""
    known = set(there.splitlines(keepends=True))
    if left := [line for line in new if line not in known]:
        write_whole(path, there + b"".join(left))


class Skipped:
    """Counts skipped images over all processes and restarts; lists each once in the workdir's skipped.txt.

    Args:
        workdir: of the run. count: from the checkpoint from which the run continues.

    Attributes:
        count: of all processes, up to the last report.
    """

    def __init__(self, workdir: Path, count: int):
        self.workdir, self.count = workdir, count
        self.new_count, self.new_lines = 0, {}  # of this process since the last report; dict as ordered set

    def add(self, skipped: list[Skips]) -> None:
        """Add the skipped images that `train_batches` yields with a batch."""
        self.new_count += len(skipped)
        self.new_lines |= dict.fromkeys(lines(skip for row in skipped for skip in row))

    def report(self) -> int:
        """Exchange new skips between processes, append them to skipped.txt, and return the total count.

        Every process must call it at the same step.

        Raises:
            UserError: skipped.txt cannot be written.
        """
        import jax  # here, because data workers import this file but need no JAX

        news = _gather(json.dumps([self.new_count, list(self.new_lines)]))
        self.new_count, self.new_lines = 0, {}
        counts, found = zip(*map(json.loads, news), strict=True)
        self.count += sum(counts)
        if jax.process_index() == 0:
            try:
                append(self.workdir, dict.fromkeys(line for some in found for line in some))
            except OSError as error:
                raise UserError(
                    f"{self.workdir / FILE} cannot be written ({error.strerror}); mend that and give the same "
                    "command again."
                ) from error
        return self.count


def _gather(text: str) -> list[str]:
    """The ASCII texts of all processes."""
    import jax
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode("ascii"), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(data)))
    rows = multihost_utils.process_allgather(np.pad(data, (0, sizes.max() - len(data))))
    return [row[:size].tobytes().decode("ascii") for row, size in zip(rows, sizes, strict=True)]
