"""What a run shows while it works: a line per interval, metrics.jsonl and TensorBoard files."""

from __future__ import annotations

import datetime
import json
import os
import pathlib
import queue
import threading
import time

import numpy as np
from clu import metrics

JSONL = "metrics.jsonl"
INPUT_SHARE = 0.1  # of an interval spent waiting for images, from which on a run says so


class TensorBoard:
    """clu's TensorBoard writer on a thread of its own, because TensorFlow takes seconds to import.

    Args:
        folder: for the event files.
    """

    def __init__(self, folder: pathlib.Path):
        self.folder, self.queue = folder, queue.SimpleQueue()
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def _work(self) -> None:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # TensorFlow greets on stderr
        try:
            from clu import metric_writers

            writer = metric_writers.SummaryWriter(str(self.folder))
            while (item := self.queue.get()) is not None:
                writer.write_scalars(*item)
                writer.flush()
            writer.close()
        except Exception as error:  # TensorFlow is missing, the disk is full ...: the run is worth more
            print(f"note: no more TensorBoard files ({error}); {JSONL} has all numbers.", flush=True)

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Hand numbers over; returns at once."""
        self.queue.put((step, numbers))

    def close(self) -> None:
        """Wait until everything is written."""
        self.queue.put(None)
        self.thread.join()


def keep_until(path: pathlib.Path, step: int) -> None:
    """Drop the lines of a metrics file beyond a step, and one cut short by a kill.

    A run that was killed goes on from its last checkpoint and reports the steps since then again.

    Args:
        path: of the file, which need not exist. step: the last to keep.
    """
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, TypeError, KeyError):
            continue
    write_whole(path, "".join(kept))


def average(window: list[dict[str, float]]) -> dict[str, float]:
    """clu's mean over the finite numbers of each name; a name without any is left out.

    Args:
        window: metrics per step.
    """
    values = {name: np.array([m[name] for m in window], np.float32) for name in window[0]}
    finite = {name: np.isfinite(v) for name, v in values.items()}
    return {
        name: float(metrics.Average.from_model_output(values[name], mask=finite[name]).compute())
        for name in values
        if finite[name].any()
    }


class Progress:
    """Prints and writes metrics on the main process; other processes only compute them.

    Args:
        workdir: of the run. steps: of the run. batch: global batch. first: step at which this
            process starts. active: whether this is the main process.
    """

    def __init__(self, workdir: pathlib.Path, steps: int, batch: int, first: int, active: bool):
        self.steps, self.batch, self.active = steps, batch, active
        self.last_step, self.said_waiting = first, False
        self.start_clock()
        if active:
            keep_until(workdir / JSONL, first)
            self.log = (workdir / JSONL).open("a")
            self.board = TensorBoard(workdir / "tensorboard")

    def start_clock(self) -> None:
        """The next interval begins now."""
        self.last_time = time.perf_counter()

    def report(self, step: int, window: list[dict[str, float]], extra: dict[str, float]) -> dict[str, float]:
        """Average a window of metrics, print and write them.

        Args:
            step: steps done. window: host metrics of every step since the last report.
            extra: further numbers of this interval, to be shown if they are not zero.

        Returns:
            The averages, with `images_per_second`; all finite.
        """
        seconds = max(time.perf_counter() - self.last_time, 1e-9)
        rate = (step - self.last_step) * self.batch / seconds
        self.last_step = step
        self.start_clock()
        means = average(window) | {"images_per_second": rate} | extra
        # A count, not a quantity: the newest number.
        means["bad_steps"] = window[-1]["bad_steps"]
        if self.active:
            print(self.line(step, means), flush=True)
            self.log.write(json.dumps({"step": step, "time": time.time(), **means}, allow_nan=False) + "\n")
            self.log.flush()
            self.board.write(step, means)
            self.mention_input(extra.get("input_wait_seconds", 0.0) / seconds)
        return means

    def mention_input(self, share: float) -> None:
        """Say once that input is the bottleneck, where waiting takes this share of an interval."""
        if share > INPUT_SHARE and not self.said_waiting:
            self.said_waiting = True
            print(
                f"note: input is the bottleneck: {share:.0%} of the time since the last line went into "
                "waiting for images; raise config.data.workers (decoding processes) up to the free cores.",
                flush=True,
            )

    def line(self, step: int, means: dict[str, float]) -> str:
        """One line: step, speed, time left, the total, its terms and whatever else is not zero."""
        rate = means["images_per_second"]
        left = datetime.timedelta(seconds=round((self.steps - step) * self.batch / rate))
        last = ("gradient_norm", "learning_rate", "input_wait_seconds", "skipped", "bad_steps")
        terms = [n for n in means if n not in (*last, "total", "images_per_second") and "/" not in n]
        names = ["total", *terms, "gradient_norm", "learning_rate"]
        names += [name for name in last[2:] if means.get(name)]
        numbers = "  ".join(f"{name} {means[name]:.4g}" for name in names if name in means)
        return f"step {step}/{self.steps}  {rate:.3g} images/s  ETA {left}  {numbers}"

    def close(self) -> None:
        """Finish the files."""
        if self.active:
            self.log.close()
            self.board.close()
