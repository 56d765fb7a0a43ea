"""Progress of a training run: one printed line per interval, metrics.jsonl and TensorBoard files."""

from __future__ import annotations

import json
import math
import os
import pathlib
import time

from sparse_vis.interop.step_folder import saved_steps
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.files import write_whole
from sparse_vis.runtime.progress import time_left
from sparse_vis.train.board import TensorBoard

JSONL = "metrics.jsonl"
WIDTH = 100  # columns of a line
INPUT_SHARE = 0.1  # a note is printed if waiting for images takes a larger share of an interval


def keep_until(path: pathlib.Path, step: int) -> list[dict]:
    """Drop the rows of a metrics file after a step, and damaged or incomplete lines.

    A killed run continues from its last checkpoint and reports the steps since then again.

    Args:
        path: metrics file, which need not exist. step: last step to keep.

    Returns:
        The rows kept.
    """
    if not path.exists():
        return []
    rows, kept, damaged, lines = [], [], 0, path.read_bytes().splitlines(keepends=True)
    for line in lines:
        try:
            row = json.loads(line)
            if row["step"] <= step and line.endswith(b"\n"):
                rows.append(row)
                kept.append(line)
        except (ValueError, TypeError, KeyError):
            damaged += line.endswith(b"\n")
    if damaged:
        print(f"note: {damaged} damaged lines of {path} are left out.", flush=True)
    if len(rows) < len(lines):
        write_whole(path, b"".join(kept))
    return rows


def short(x: float) -> str:
    """A non-negative number with three significant digits; from 100 on, rounded to a whole number."""
    return f"{x:.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.2f}"


class Averages:
    """Means of the finite metrics since the last row, kept as sums that a checkpoint can store.

    Args:
        sums: name -> [sum, number of finite values]. steps: number of steps in the sums.
    """

    def __init__(self, sums: dict[str, list[float]] | None = None, steps: int = 0):
        self.sums, self.steps = sums or {}, steps

    def add(self, window: list[dict[str, float]]) -> None:
        """Add the metrics of several steps; values that are not finite are left out."""
        self.steps += len(window)
        for metrics in window:
            for name, value in metrics.items():
                if math.isfinite(value):
                    total, count = self.sums.get(name, (0.0, 0))
                    self.sums[name] = [total + value, count + 1]
            # A running count: the newest value, not a mean.
            self.sums["bad_steps"] = [metrics["bad_steps"], 1]

    def means(self) -> dict[str, float]:
        """The mean of every name."""
        return {name: total / count for name, (total, count) in self.sums.items()}


class Progress:
    """Prints and writes metrics in the main process; other processes only compute them.

    Args:
        workdir, steps: of the run. batch: global batch size. first: step at which this process starts.
        active: whether this is the main process.

    Raises:
        UserError: the metrics cannot be written.
    """

    def __init__(self, workdir: pathlib.Path, steps: int, batch: int, first: int, active: bool):
        self.path, self.steps, self.batch, self.active = workdir / JSONL, steps, batch, active
        self.last_step, self.said_waiting = first, False
        self.start_clock()
        if active:
            try:
                rows = keep_until(self.path, first)
                self.log = self.path.open("ab", buffering=0)
            except OSError as error:
                raise self._unwritable(error) from error
            self.board = TensorBoard(workdir / "tensorboard", rows)

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"metrics cannot be written to {self.path} ({error.strerror}; "
            f"{saved_steps(self.path.parent)}); mend that and give the same command again."
        )

    def start_clock(self) -> None:
        """Start timing the next interval."""
        self.last_time = time.perf_counter()

    def report(self, step: int, means: dict[str, float], extra: dict[str, float]) -> dict[str, float]:
        """Print and write a row of metrics.

        Args:
            step: steps done. means: of the steps since the last row.
            extra: further numbers of this interval.

        Returns:
            The row's numbers, with `images_per_second`; all finite.

        Raises:
            UserError: they cannot be written.
        """
        seconds = max(time.perf_counter() - self.last_time, 1e-9)
        rate = (step - self.last_step) * self.batch / seconds
        self.last_step = step
        self.start_clock()
        means = means | {"images_per_second": rate} | extra
        if self.active:
            print(self.line(step, means), flush=True)
            row = {"step": step, "time": time.time(), **means}
            self._write(json.dumps(row, allow_nan=False).encode() + b"\n")
            self.board.write(step, means)
            self.mention_input(extra.get("input_wait_seconds", 0.0) / seconds)
        return means

    def _write(self, line: bytes) -> None:
        try:
            os.stat(self.path)  # fails if the file was deleted, to which writing would succeed
            while line:
                line = line[self.log.write(line) :]
        except OSError as error:
            raise self._unwritable(error) from error

    def sync(self) -> None:
        """Wait until all rows are on disk; called before a checkpoint is saved, which relies on them."""
        if self.active:
            try:
                os.stat(self.path)
                os.fsync(self.log.fileno())
            except OSError as error:
                raise self._unwritable(error) from error

    def mention_input(self, share: float) -> None:
        """Print once that input is the bottleneck, if waiting took more than INPUT_SHARE of an interval."""
        if share > INPUT_SHARE and not self.said_waiting:
            self.said_waiting = True
            print(
                f"note: input is the bottleneck: {share:.0%} of the time since the last line went into "
                "waiting for images; raise config.data.workers (decoding processes) up to the free cores.",
                flush=True,
            )

    def line(self, step: int, row: dict[str, float]) -> str:
        """The line to print for a row: the main numbers; metrics.jsonl has all.

        Beyond WIDTH columns it leaves out the percentage, then the epoch, then the tokens' rank.

        Args:
            step: steps done. row: numbers by name.
        """
        rate = row["images_per_second"]
        left = time_left((self.steps - step) * self.batch / rate)
        parts = {"step": f"step {step}/{self.steps}", "share": f"{100 * step // self.steps}%"}
        if "epoch" in row:
            parts["epoch"] = f"epoch {short(row['epoch'])}"
        parts |= {"rate": f"{short(rate)} images/s", "left": f"ETA {left}"}
        parts |= {name: f"{name} {row[name]:.4g}" for name in ("total", "reconstruction") if name in row}
        if "reconstruction_psnr" in row:
            parts["reconstruction"] = f"PSNR {row['reconstruction_psnr']:.2f} dB"
        if "health/S_rank" in row:
            parts["rank"] = f"S_rank {short(row['health/S_rank'])}"
        parts |= {name: f"{name} {row[name]:.0f}" for name in ("skipped", "bad_steps") if row.get(name)}
        for name in ("share", "epoch", "rank", ""):
            line = "  ".join(parts.values())
            if len(line) <= WIDTH:
                break
            parts.pop(name, None)
        return line

    def close(self) -> None:
        """Close the files."""
        if self.active:
            self.log.close()
            self.board.close()
