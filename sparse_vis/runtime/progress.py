"""What long work prints: its progress, and notes."""

import contextlib
import datetime
import functools
import shutil
import sys
import threading
import time
from collections.abc import Iterator

REPORT_SECONDS, WAIT_SECONDS = 5.0, 15.0

_shown = ""  # the line that `update` shows, if the cursor is still on it


def time_left(seconds: float) -> str:
    """A duration as h:mm:ss, or from one day on as days and hours."""
    days, rest = divmod(round(seconds), 86400)
    return f"{days}d {rest // 3600}h" if days else str(datetime.timedelta(seconds=rest))


def say(text: str) -> None:
    """Print a line, below one that `update` shows."""
    end_line()
    print(text, flush=True)


@functools.cache
def say_once(text: str) -> None:
    """Print a line unless this process has printed it before."""
    say(text)


def update(text: str) -> None:
    """On a terminal and in Jupyter, replace the line that `update` has shown; elsewhere print a line."""
    global _shown
    if terminal := sys.stdout.isatty():
        text = text[: shutil.get_terminal_size().columns - 1]  # a wrapped line cannot be replaced
    if not terminal and not type(sys.stdout).__module__.startswith("ipykernel"):
        return say(text)
    print("\r" + text.ljust(len(_shown)), end="", flush=True)
    _shown = text


def end_line() -> None:
    """Go to the next line if `update` shows one."""
    global _shown
    if _shown:
        print(flush=True)
    _shown = ""


@contextlib.contextmanager
def sign_of_life(text: str, every: float = WAIT_SECONDS) -> Iterator[None]:
    """Context for work that prints nothing: every few seconds, shows the text and how long it has taken."""
    began, done = time.perf_counter(), threading.Event()

    def repeat():
        while not done.wait(every):
            update(f"{text}: {time.perf_counter() - began:.0f} s")

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class Progress:
    """Prints images done, images/s and the time left, every few seconds and at the end; not for training.

    The rate leaves out the images of the first `add`, during which programs compile, unless there are no
    others. `total`: images (or `unit`) in all, over all epochs; `done`: those that an earlier call has done.
    """

    def __init__(self, what: str, total: int, done: int = 0, unit: str = "images"):
        self.what, self.total, self.done, self.unit = what, total, done, unit
        self.first, self.began = self.done, time.perf_counter()
        self.printed, self.warm = self.began, False

    def add(self, images: int) -> None:
        now = time.perf_counter()
        self.done += images
        if not self.warm and self.done < self.total:
            self.first, self.began = self.done, now
        self.warm = True
        if now - self.printed < REPORT_SECONDS and self.done < self.total:
            return
        self.printed, rate = now, (self.done - self.first) / max(now - self.began, 1e-9)
        rest = f"  {rate:.1f} {self.unit}/s  ETA {time_left((self.total - self.done) / rate)}" if rate else ""
        print(f"{self.what}: {self.done}/{self.total} {self.unit}{rest}", flush=True)
