"""Kinds of values and what is wrong with one: numbers of an interval, pairs of them, choices, other forms.

Every kind has `kind(value)`, what is wrong with the value's type, and `fault(value)`, what is wrong with its
type or size: the end of a sentence with its remedy, or "". Values may come from JSON, with lists for tuples.
"""

from __future__ import annotations

import numbers
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MOST = 2**31 - 1  # of int32


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, as float32 holds them.

    Attributes:
        low, high: ends, which are part of it unless `above` or `below` says otherwise.
        above, below: low, high is left out. whole: only whole numbers.
        pair: two such numbers, of which the first must not be the larger one.
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
        # What float32 rounds to an end is that end to everything that computes with it.
        x, low, high = (n if self.whole else single(n) for n in (number, self.low, self.high))
        if x < low or (self.above and x == low):
            return f"is too small; it must be {'above' if self.above else 'at least'} {self.low:.15g}"
        if x > high or (self.below and x == high):
            return f"is too large; it must be {'below' if self.below else 'at most'} {self.high:.15g}"
        return ""


def real(interval: str) -> Range:
    """Numbers of an interval: [ and ] beside an end that is part of it, ( and ) beside one that is not."""
    low, high = map(float, interval[1:-1].split(","))
    return Range(low, high, interval[0] == "(", interval[-1] == ")")


def pair(interval: str) -> Range:
    """Two numbers of an interval, written as in `real`, the smaller first."""
    return Range(**{**vars(real(interval)), "pair": True})


def whole(low: int, high: int = MOST) -> Range:
    """Whole numbers from low to high."""
    return Range(low, high, whole=True)


class Choice(tuple):
    """One of some words."""

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
    """Whatever a test accepts.

    Attributes:
        right: the test. wrong: the sentence where it fails.
    """

    right: Callable[[Any], bool]
    wrong: str

    def kind(self, value: Any) -> str:
        return "" if self.right(value) else self.wrong

    fault = kind


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number; neither True nor False is one."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def fits(value: Any) -> bool:
    """Whether a value is a number that float32 can hold; NaN is none, nor are True and False."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return number and abs(single(value)) < float("inf")


def single(number: float) -> float:
    """The float32 nearest to a number; infinity, with the number's sign, beyond the largest."""
    try:
        return struct.unpack("f", struct.pack("f", number))[0]
    except (OverflowError, struct.error):  # struct.error: a whole number that not even float64 holds
        return float("inf") if number > 0 else float("-inf")


def shown(value: Any) -> str:
    """A value in a message, cut if it is long; a whole number without .0, as it may be typed."""
    if isinstance(value, float) and value.is_integer():
        return f"{value:.15g}"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]}…"
