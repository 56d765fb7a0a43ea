"""Names of columns in an address such as `table:FILE#path=file,label=species`, and labels as numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32

from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.names import quoted

LABELS = ("label", "class", "cls", "category", "target")  # usual names of the column of labels


def split_address(address: str, keys: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """The part of an address before `#`, and the columns named after it, by key.

    Raises:
        UserError: a key that is none of `keys`.
    """
    match = re.fullmatch(r"(.*?)#(\w+=[^,#]*(?:,\w+=[^,#]*)*)", address, re.DOTALL)
    if not match:  # a path may contain #
        return address, {}
    named = dict(part.split("=", 1) for part in match[2].split(","))
    if unknown := [key for key in named if key not in keys]:
        raise UserError(
            f"config.data.source names the column {unknown[0]!r}, which is unknown after the # of "
            f"{match[1]!r}; use {' or '.join(keys)}, as in #{keys[0]}=COLUMN."
        )
    return match[1], named


def find_column(there: Iterable[str], named: str | None, usual: Sequence[str], what: str) -> str | None:
    """The column that an address names, else the first usual name that is there, without regard to case.

    `named` is "" for none. `what` begins the error: "table 'a.csv'".

    Raises:
        UserError: there is no column of the name given.
    """
    there = list(there)
    if named is None:
        lower = {name.lower(): name for name in reversed(there)}
        return next((lower[name] for name in usual if name in lower), None)
    if named and named not in there:
        raise UserError(
            f"{what} has no column {named!r}, only {', '.join(map(quoted, there[:8]))}; name one."
        )
    return named or None


def number_labels(values: Sequence[Any]) -> tuple[Int32[np.ndarray, " n"], tuple[str, ...]]:
    """Labels as numbers of classes, and the classes: the different values, whole numbers by size.

    None, "" and -1 stand for no label, as in the unlabelled test splits of many data sets.
    """
    texts = ["" if value is None or value != value else str(value).strip() for value in values]
    found = {text for text in texts if text not in ("", "-1")}
    whole = all(re.fullmatch(r"-?\d+", text) for text in found)
    classes = tuple(sorted(found, key=(lambda text: (int(text), text)) if whole else None))
    number = {name: label for label, name in enumerate(classes)}
    return np.array([number.get(text, -1) for text in texts], np.int32), classes
