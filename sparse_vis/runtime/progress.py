"""The line that long work over images shows; a training run has its own, train/progress.py."""

from __future__ import annotations

import datetime
import time

REPORT_SECONDS = 5.0


def time_left(seconds: float) -> str:
    """A duration as h:mm:ss; from a day on as days and hours."""
    days, rest = divmod(round(seconds), 86400)
    return f"{days}d {rest // 3600}h" if days else str(datetime.timedelta(seconds=rest))


class Progress:
    """Prints images done, images/s and the time left, now and then and at the end.

    The rate leaves out the first images that are counted, while which programs compile; where there are no
    others it is theirs.

    Args:
        what: is done. total: images, over all epochs. done: of them, by an earlier call.
    """

    def __init__(self, what: str, total: int, done: int = 0):
        self.what, self.total, self.done = what, total, done
        self.first, self.began = self.done, time.perf_counter()
        self.printed, self.warm = self.began, False

    def add(self, images: int) -> None:
        """Count images that were handled."""
        now = time.perf_counter()
        self.done += images
        if not self.warm and self.done < self.total:
            self.first, self.began = self.done, now
        self.warm = True
        if now - self.printed < REPORT_SECONDS and self.done < self.total:
            return
        self.printed, rate = now, (self.done - self.first) / max(now - self.began, 1e-9)
        speed = f"  {rate:.1f} images/s  ETA {time_left((self.total - self.done) / rate)}" if rate else ""
        print(f"{self.what}: {self.done}/{self.total} images{speed}", flush=True)
