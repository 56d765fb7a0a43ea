"""Count and list the images that a run could not use (config.data.on_error=skip)."""

from __future__ import annotations

import json
import pathlib

import jax
import numpy as np
from jax.experimental import multihost_utils

from sparse_vis.runtime import skipped as skipped_file
from sparse_vis.runtime.errors import UserError


class Skipped:
    """Counts skipped images over all processes and restarts; lists each once in the workdir's skipped.txt.

    Args:
        workdir: of the run. count: from the checkpoint from which the run continues.

    Attributes:
        count: of all processes, up to the last report.
    """

    def __init__(self, workdir: pathlib.Path, count: int):
        self.workdir, self.count = workdir, count
        self.new_count, self.new_lines = 0, {}  # of this process since the last report; dict as ordered set

    def add(self, skipped: list[list[tuple[str, str]]]) -> None:
        """Add the skipped images that `train_batches` yields with a batch."""
        self.new_count += len(skipped)
        self.new_lines |= dict.fromkeys(skipped_file.lines(skip for row in skipped for skip in row))

    def report(self) -> int:
        """Exchange new skips between processes, append them to skipped.txt, and return the total count.

        Every process must call it at the same step.

        Raises:
            UserError: skipped.txt cannot be written.
        """
        news = gather(json.dumps([self.new_count, list(self.new_lines)]))
        self.new_count, self.new_lines = 0, {}
        counts, lines = zip(*map(json.loads, news), strict=True)
        self.count += sum(counts)
        if jax.process_index() == 0:
            try:
                skipped_file.append(self.workdir, dict.fromkeys(line for some in lines for line in some))
            except OSError as error:
                raise UserError(
                    f"{self.workdir / skipped_file.FILE} cannot be written ({error.strerror}); mend that and "
                    "give the same command again."
                ) from error
        return self.count


def gather(text: str) -> list[str]:
    """The ASCII texts of all processes; every process must call it at the same step."""
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode("ascii"), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(data)))
    rows = multihost_utils.process_allgather(np.pad(data, (0, sizes.max() - len(data))))
    return [row[:size].tobytes().decode("ascii") for row, size in zip(rows, sizes, strict=True)]
