"""What a process says once, however often and in whichever thread it comes up."""

from __future__ import annotations

import functools


@functools.cache
def say_once(text: str) -> None:
    """Print a line unless this process has printed it before."""
    print(text, flush=True)
