"""Notes that a process prints once, however often they arise."""

from __future__ import annotations

import functools


@functools.cache
def say_once(text: str) -> None:
    """Print a line unless this process has printed it before."""
    print(text, flush=True)
