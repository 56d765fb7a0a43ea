"""Allowed values of settings: numbers in an interval, pairs of them, choices, other forms.

Each class has `kind(value)`, which checks the type, and `fault(value)`, which checks type and range. They
return what is wrong, as the rest of a sentence with a remedy, or "". Values may come from JSON, where tuples
are lists.
"""

from __future__ import annotations

import numbers
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MOST = 2**31 - 1  # largest int32


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, compared after rounding to float32.

    Attributes:
        low, high: ends of the interval. above, below: whether low, high is excluded.
        whole: only whole numbers (not rounded). pair: two such numbers, the smaller first.
    """

    low: float
    high: float
    above: bool = False
    below: bool = False
    whole: bool = False
    pair: bool = False

    def kind(self, value: Any) -> str:
        if self.pair:
            right = isinstance(value, tuple | list) and len(value) == 2 and all(map(fits, value))
            return "" if right else "is no pair of numbers; write it like (0.5, 1.0)"
        if self.whole:
            return "" if is_whole(value) else "is no whole number; write one"
        return "" if fits(value) else "is no number that float32 can hold; write one"

    def fault(self, value: Any) -> str:
        if kind := self.kind(value):
            return kind
        for number in value if self.pair else (value,):
            if sentence := self._outside(number):
                return sentence
        return "has its larger number first; swap the two" if self.pair and value[0] > value[1] else ""

    def _outside(self, number: float) -> str:
        # A number that rounds to an end in float32 equals that end in all computations.
        x, low, high = (n if self.whole else single(n) for n in (number, self.low, self.high))
        if x < low or (self.above and x == low):
            return f"is too small; it must be {'above' if self.above else 'at least'} {self.low:.15g}"
        if x > high or (self.below and x == high):
            return f"is too large; it must be {'below' if self.below else 'at most'} {self.high:.15g}"
        return ""


def real(interval: str) -> Range:
    """Numbers in an interval, written like "[0, 1)": square brackets include the end, round ones do not."""
    low, high = map(float, interval[1:-1].split(","))
    return Range(low, high, interval[0] == "(", interval[-1] == ")")


def pair(interval: str) -> Range:
    """Two numbers in an interval, written as in `real`, the smaller first."""
    return Range(**{**vars(real(interval)), "pair": True})


def whole(low: int, high: int = MOST) -> Range:
    """Whole numbers from low to high."""
    return Range(low, high, whole=True)


class Choice(tuple):
    """One of several strings."""

    def __new__(cls, *words: str):
        return super().__new__(cls, words)

    def kind(self, value: Any) -> str:
        return "" if isinstance(value, str) else self._remedy

    def fault(self, value: Any) -> str:
        return "" if isinstance(value, str) and value in self else self._remedy

    @property
    def _remedy(self) -> str:
        return f"is unknown; use {' or '.join(map(repr, self))}"


@dataclass(frozen=True)
class Form:
    """Values that pass a test.

    Attributes:
        right: the test. wrong: the rest of the sentence if it fails.
    """

    right: Callable[[Any], bool]
    wrong: str

    def kind(self, value: Any) -> str:
        return "" if self.right(value) else self.wrong

    fault = kind


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number; booleans are not."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def fits(value: Any) -> bool:
    """Whether a value is a number that float32 can hold; NaN, infinities and booleans are not."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return number and abs(single(value)) < float("inf")


def single(number: float) -> float:
    """The nearest float32; beyond the largest, infinity with the number's sign."""
    try:
        return struct.unpack("f", struct.pack("f", number))[0]
    except (OverflowError, struct.error):  # struct.error: an int beyond float64
        return float("inf") if number > 0 else float("-inf")


def shown(value: Any) -> str:
    """A value for a message, shortened if it is long; whole floats without .0."""
    if isinstance(value, float) and value.is_integer():
        return f"{value:.15g}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}…"
