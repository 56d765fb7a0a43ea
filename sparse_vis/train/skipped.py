"""The images that a run could not use, with config.data.on_error=skip: how many, and which."""

from __future__ import annotations

import json
import pathlib

import jax
import numpy as np
from jax.experimental import multihost_utils

from sparse_vis.runtime import skipped as skipped_file


class Skipped:
    """Counts over all processes and restarts; names each image once in skipped.txt of the workdir.

    Args:
        workdir: of the run. count: of the checkpoint that the run goes on from.

    Attributes:
        count: of all processes up to the last report.
    """

    def __init__(self, workdir: pathlib.Path, count: int):
        self.workdir, self.count = workdir, count
        self.new_count, self.new_lines = 0, {}  # since the last report, of this process; a set in order

    def add(self, skipped: list[list[tuple[str, str]]]) -> None:
        """Note what `train_batches` gives beside a batch."""
        self.new_count += len(skipped)
        self.new_lines |= dict.fromkeys(skipped_file.lines(skip for row in skipped for skip in row))

    def report(self) -> int:
        """The count so far; every process must call it at the same step.

        A line of skipped.txt is the image's name, a tab and the reason.
        """
        news = gather(json.dumps([self.new_count, list(self.new_lines)]))
        self.new_count, self.new_lines = 0, {}
        counts, lines = zip(*map(json.loads, news), strict=True)
        self.count += sum(counts)
        if jax.process_index() == 0:
            skipped_file.append(self.workdir, dict.fromkeys(line for some in lines for line in some))
        return self.count


def gather(text: str) -> list[str]:
    """The texts of all processes, ASCII; every process must call it at the same step."""
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode("ascii"), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(data)))
    rows = multihost_utils.process_allgather(np.pad(data, (0, sizes.max() - len(data))))
    return [row[:size].tobytes().decode("ascii") for row, size in zip(rows, sizes, strict=True)]
