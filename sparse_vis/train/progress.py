"""What a run shows while it works: a line per interval, metrics.jsonl and TensorBoard files."""

from __future__ import annotations

import datetime
import json
import pathlib
import time

import numpy as np


class Progress:
    """Writes metrics on the main process; other processes only count.

    Args:
        workdir: of the run. steps: of the run. batch: global batch. first: step at which this
            process starts. active: whether this is the main process.
    """

    def __init__(self, workdir: pathlib.Path, steps: int, batch: int, first: int, active: bool):
        self.steps, self.batch, self.active = steps, batch, active
        self.last_step, self.last_time = first, time.perf_counter()
        self.writer = None
        if active:
            # Imports TensorFlow: only where metrics are really written.
            from clu import metric_writers

            self.writer = metric_writers.SummaryWriter(str(workdir / "tensorboard"))
            self.log = (workdir / "metrics.jsonl").open("a")

    def report(self, step: int, window: list[dict], extra: dict) -> dict[str, float]:
        """Average a window of metrics, print and write them.

        Args:
            step: steps done. window: host metrics of every step since the last report.
            extra: further numbers of this interval.

        Returns:
            The averages, with `images_per_second`.
        """
        now = time.perf_counter()
        rate = (step - self.last_step) * self.batch / max(now - self.last_time, 1e-9)
        self.last_step, self.last_time = step, now
        means = {name: float(np.mean([metrics[name] for metrics in window])) for name in window[0]}
        means |= {"images_per_second": rate, **extra}
        if self.active:
            eta = datetime.timedelta(seconds=round((self.steps - step) * self.batch / max(rate, 1e-9)))
            shown = {k: v for k, v in means.items() if k not in ("images_per_second", "bad_steps")}
            numbers = "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
            print(f"step {step}/{self.steps}  {rate:.0f} images/s  ETA {eta}  {numbers}", flush=True)
            self.log.write(json.dumps({"step": step, "time": time.time(), **means}) + "\n")
            self.log.flush()
            self.writer.write_scalars(step, means)
            self.writer.flush()
        return means

    def close(self) -> None:
        if self.active:
            self.log.close()
            self.writer.close()
