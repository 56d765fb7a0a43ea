"""The log of a training run: printed lines, metrics.jsonl, other writers, skipped images."""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils
from PIL import Image

from sparse_vis.interop.step_folder import saved_steps
from sparse_vis.runtime import skipped as skipped_file
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.files import whole, write_whole
from sparse_vis.runtime.growing import growing
from sparse_vis.runtime.paths import AnyPath
from sparse_vis.runtime.progress import end_line, say, time_left
from sparse_vis.train.board import PICTURES, Guarded, TensorBoard, picture_of

JSONL = "metrics.jsonl"
WIDTH = 100  # columns of a line
INPUT_SHARE = 0.1  # a note is printed if waiting for images takes a larger share of an interval


def keep_until(path: AnyPath, step: int) -> list[dict]:
    """Drop a metrics file's rows after a step, and damaged or incomplete lines; returns the rows kept.

    A killed run continues from its last checkpoint, and reports the steps after it again.
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
        say(f"note: {damaged} damaged lines of {path} were skipped.")
    if len(rows) < len(lines):
        write_whole(path, b"".join(kept))
    return rows


def short(x: float) -> str:
    """A number with about three significant digits; from 100 on a whole number."""
    return f"{x:.0f}" if x >= 100 else f"{x:.1f}" if x >= 10 else f"{x:.2f}"


class Averages:
    """Means of the finite metrics since the last row, kept as sums that a checkpoint can store."""

    def __init__(self, sums: dict[str, list[float]] | None = None, steps: int = 0):
        # Name -> [sum, number of finite values]; and the number of steps.
        self.sums, self.steps = sums or {}, steps

    def add(self, window: list[dict[str, float]]) -> None:
        """Add the metrics of several steps; values that are not finite are left out."""
        self.steps += len(window)
        for metrics in window:
            for name, value in metrics.items():
                if math.isfinite(value):
                    total, count = self.sums.get(name, (0.0, 0))
                    self.sums[name] = [total + value, count + 1]
            # This is a running count: keep the newest value.
            self.sums["bad_steps"] = [metrics["bad_steps"], 1]

    def means(self) -> dict[str, float]:
        return {name: total / count for name, (total, count) in self.sums.items()}


class RunLog:
    """Prints and writes metrics in the main process (`active`); other processes only compute them.

    `first` is the step at which this process starts, `show` prints a row's line. Raises UserError if the
    metrics cannot be written.
    """

    def __init__(
        self, workdir: AnyPath, steps: int, batch: int, first: int, active: bool,
        show: Callable[[str], None] = say,
    ):  # fmt: skip
        self.path, self.steps, self.batch, self.active = workdir / JSONL, steps, batch, active
        self.show = show
        self.last_step, self.said_waiting = first, False
        self.probed = {}  # what the newest probe adds to the printed line
        self.start_clock()
        if active:
            with self._writing():
                rows = keep_until(self.path, first)
                self.file = growing(self.path)
            self.board = TensorBoard(workdir / "tensorboard", rows)
            self.writers: list[Guarded] = [self.board]

    def start_clock(self) -> None:
        self.last_time = time.perf_counter()

    def report(self, step: int, means: dict[str, float], extra: dict[str, float]) -> dict[str, float]:
        """Print, write and return a row: the means since the last row, `images_per_second` and `extra`."""
        seconds = max(time.perf_counter() - self.last_time, 1e-9)
        rate = (step - self.last_step) * self.batch / seconds
        self.last_step = step
        self.start_clock()
        means = means | {"images_per_second": rate} | extra
        if self.active:
            self.show(self.line(step, means))
            self._write_row(step, means)
            for writer in self.writers:
                writer.write(step, means)
            share = extra.get("input_wait_seconds", 0.0) / seconds
            if share > INPUT_SHARE and not self.said_waiting:
                self.said_waiting = True
                say(
                    f"note: data loading is the bottleneck: {share:.0%} of the time since the last line was "
                    "spent waiting for images; raise config.data.workers (decoding processes), up to the "
                    "number of free cores."
                )
        return means

    def add_probe(self, step: int, numbers: dict[str, float], picture: np.ndarray, seconds: float) -> None:
        """Write a probe's numbers as a row, and its picture, uint8 (H, W, 3); it took `seconds`, which do not
        count as training."""
        self.last_time += seconds
        if self.active:
            say("  ".join([f"probe at step {step}:", *(f"{name} {x:.4g}" for name, x in numbers.items())]))
            self.probed = {"probe": f"kNN {numbers['knn']:.3f}"} if "knn" in numbers else {}
            numbers = {f"{PICTURES}/{name}": x for name, x in numbers.items()}
            with self._writing():
                path = picture_of(self.path.parent, step)
                path.parent.mkdir(exist_ok=True)
                with whole(path) as partial:
                    Image.fromarray(picture).save(partial, format="PNG")
            self._write_row(step, numbers)
            for writer in self.writers:
                writer.write(step, numbers, {PICTURES: picture})

    def _write_row(self, step: int, numbers: dict[str, float]) -> None:
        row = {"step": step, "time": time.time(), **numbers}
        with self._writing():
            self.file.write(json.dumps(row, allow_nan=False).encode() + b"\n")
            self.file.flush()

    def sync(self) -> None:
        """Wait until all rows are on disk. A checkpoint relies on them, so call this before it is saved."""
        if self.active:
            with self._writing():
                self.file.sync()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(
                f"metrics cannot be written to {self.path} ({error.strerror}; "
                f"{saved_steps(self.path.parent)}); fix this and repeat the command."
            ) from error

    def line(self, step: int, row: dict[str, float]) -> str:
        """The line to print for a row, with its main numbers and the newest probe's kNN.

        If it is longer than WIDTH columns, the percentage is left out, then epoch, tokens' rank and kNN.
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
        parts |= self.probed
        parts |= {name: f"{name} {row[name]:.0f}" for name in ("skipped", "bad_steps") if row.get(name)}
        for name in ("share", "epoch", "rank", "probe", ""):
            line = "  ".join(parts.values())
            if len(line) <= WIDTH:
                break
            parts.pop(name, None)
        return line

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, error: type | None, *_) -> None:
        self.close(failed=error is not None)

    def close(self, failed: bool = False) -> None:
        """Close all files and the runs of trackers; `failed`: whether an error has ended this run."""
        if self.active:
            end_line()
            with contextlib.suppress(OSError) if failed else self._writing():
                self.file.close()
            for writer in self.writers:
                writer.close(failed)


class Skipped:
    """Counts skipped images over all processes and restarts; lists each once in the workdir's skipped.txt.

    `count` is the number of images that all processes had skipped at the last report, or the checkpoint.
    """

    def __init__(self, workdir: AnyPath, count: int):
        self.workdir, self.count = workdir, count
        self.new_count, self.new_lines = 0, {}  # of this process since the last report; an ordered set

    def add(self, skipped: list[list[tuple[str, str]]]) -> None:
        """Add the skipped images that `train_batches` yields with a batch."""
        self.new_count += len(skipped)
        self.new_lines |= dict.fromkeys(skipped_file.lines(skip for row in skipped for skip in row))

    def report(self) -> int:
        """Append the new skips of all processes to skipped.txt; returns the total count. Every process must
        call it at the same step."""
        news = gather(json.dumps([self.new_count, list(self.new_lines)]))
        self.new_count, self.new_lines = 0, {}
        counts, lines = zip(*map(json.loads, news), strict=True)
        self.count += sum(counts)
        if jax.process_index() == 0:
            skipped_file.append(self.workdir, dict.fromkeys(line for some in lines for line in some))
        return self.count


def gather(text: str) -> list[str]:
    """The ASCII texts of all processes; every process must call it at the same step."""
    if jax.process_count() == 1:
        return [text]
    data = np.frombuffer(text.encode("ascii"), np.uint8)
    sizes = multihost_utils.process_allgather(np.int32(len(data)))
    rows = multihost_utils.process_allgather(np.pad(data, (0, sizes.max() - len(data))))
    return [row[:size].tobytes().decode("ascii") for row, size in zip(rows, sizes, strict=True)]
