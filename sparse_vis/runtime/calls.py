"""Check arguments of Python functions, and reword errors so that they name arguments, not flags."""

import functools
import numbers
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from sparse_vis.runtime.errors import UserError, reworded

# Parts of errors that name settings or flags -> what a caller in Python reads instead, in this order.
OF_CALLS = {
    ", or raise --config.data.max_pixels (in other commands: --max-pixels)": "",
    ", or pass --config.data.on_error=skip to leave it out": "",
    "config.eval.mask_classes=": "the number of classes is ",
    "config.eval.masks": "masks",
    "give --input the folder": "give the folder",
    "several splits; set --split to": "several splits; give datasets.load_dataset(…, split=SPLIT) of",
    "has a {split}; set --split, which replaces it": "has a {split}; write the split itself in its place",
    "--input=": "",
    "--input": "the path",
    "--data-dir": "data_dir (only commands have it)",
    "--split": "split (only commands have it)",
}


def renamed(names: Mapping[str, str]) -> AbstractContextManager[None]:
    """Context, or decorator, that replaces each of `names`, in order, in UserErrors raised inside."""

    def change(text: str) -> str:
        return functools.reduce(lambda text, name: text.replace(name, names[name]), names, text)

    return reworded(change)


def whole(name: str, value: Any, least: int) -> int:
    """The value as int. Raises UserError unless it is a whole number, of Python or NumPy, and >= `least`."""
    if not isinstance(value, numbers.Integral) or value < least:
        raise UserError(f"{name}={value!r} is not a whole number of at least {least}; give one.")
    return int(value)


def share(name: str, value: Any) -> float:
    """The value as float. Raises UserError unless it is a number between 0 and 1, both excluded."""
    if not isinstance(value, numbers.Real) or not 0 < value < 1:
        raise UserError(f"{name}={value!r} is not a number between 0 and 1; give one, e.g. 0.2.")
    return float(value)


def one_of(name: str, value: Any, known: Collection[str]) -> None:
    """Raise UserError unless the value is one of `known`."""
    if value not in known:
        raise UserError(f"{name}={value!r} is unknown; choose from {', '.join(known)}.")


def class_names(given: Any) -> tuple[str, ...]:
    """The names in an argument `classes`, a list, tuple or array in the order of the labels.

    Raises UserError if it is anything else or empty, or has an item that is not a name, or a name twice.
    """
    found = given.tolist() if hasattr(given, "tolist") else given
    if isinstance(found, str | bytes) or not isinstance(found, Sequence):
        what = f"classes={given!r} is a {type(given).__name__}"
        raise UserError(f"{what}; give a list of the classes' names, in the order of the labels' numbers.")
    if wrong := [name for name in found if not isinstance(name, str | numbers.Number)]:
        raise UserError(f"classes has {wrong[0]!r}, a {type(wrong[0]).__name__}; give names of classes.")
    names = tuple(map(str, found))
    if not names:
        raise UserError("classes is empty; give the names of the classes, or leave it out.")
    if len({*names}) < len(names):
        twice = next(name for number, name in enumerate(names) if name in names[:number])
        raise UserError(f"classes has the name {twice!r} twice; give every class its own.")
    return names
