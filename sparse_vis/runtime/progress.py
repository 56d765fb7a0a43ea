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

_shown = ""  # the line that `update` shows, while the cursor is behind it


def time_left(seconds: float) -> str:
    """A duration as h:mm:ss, or from one day on as days and hours."""
    days, rest = divmod(round(seconds), 86400)
    return f"{days}d {rest // 3600}h" if days else str(datetime.timedelta(seconds=rest))


def say(text: str) -> None:
    """Print a line, below the one that `update` may show."""
    end_line()
    print(text, flush=True)


@functools.cache
def say_once(text: str) -> None:
    """Print a line unless this process has printed it before."""
    say(text)


def update(text: str) -> None:
    """Show a line in place of the last one, on a terminal and in Jupyter; elsewhere print it."""
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
    """Context around work that prints nothing: shows the text with the seconds gone, from time to time."""
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
    """Prints images done, images/s and the time left, every few seconds and at the end (not of training).

    The rate leaves out the images of the first `add`, during which programs compile, unless these are all.
    `total` counts the images (or `unit`) of all epochs, `done` those of an earlier call.
    """

    def __init__(self, what: str, total: int, done: int = 0, unit: str = "images"):
        self.what, self.total, self.done, self.unit = what, total, done, unit
        self.first, self.began = self.done, time.perf_counter()
        self.printed, self.warm = self.began, False

    def add(self, images: int) -> None:
        """Count further images as done."""
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
