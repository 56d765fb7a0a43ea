"""Read addresses such as `table:FILE#path=file,label=species`: patterns, columns, labels as numbers."""

import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int32

from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.names import quoted

SPLIT = "{split}"
LABELS = ("label", "class", "cls", "category", "target")  # usual names of the column of labels


def split_address(address: str, keys: tuple[str, ...]) -> tuple[str, dict[str, str]]:
    """The part of an address before `#`, and key -> column of the rest. Raises UserError for other keys."""
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


def with_split(pattern: str, split: str) -> str:
    """A pattern of files with {split} replaced. Raises UserError if there is a split but no {split}, or if
    there is a {split} but no split."""
    if split and SPLIT not in pattern:
        where = f"write {SPLIT} where the split is in the names"
        raise UserError(f"{pattern!r} has no {SPLIT}; set --config.data.split= (empty), or {where}.")
    if SPLIT in pattern and not split:
        raise UserError(f"{pattern!r} has a {SPLIT}; set --config.data.split, which replaces it.")
    return pattern.replace(SPLIT, split)


def splits_apart(one: str, other: str) -> bool:
    """Whether two splits certainly have no image in common.

    train[:90%] and train may have some in common, as may test and all, shard-0* and shard-00, and also train
    and train2, which patterns of files may join.
    """
    pairs = itertools.product(*(split.split("+") for split in (one, other)))
    return not any(_may_overlap(first.strip(), second.strip()) for first, second in pairs)


def _may_overlap(*splits: str) -> bool:
    names = [re.fullmatch(r"(\w[\w.-]*)(\[[^\]]*\])?", split) for split in splits]
    if None in names:
        return True
    one, other = (match[1] for match in names)
    return "all" in (one, other) or one.startswith(other) or other.startswith(one)


def expand(pattern: str) -> list[str]:
    """A pattern with {a,b} and {008..012} replaced, as the shell does, in order."""
    for start in (match.start() for match in re.finditer("{", pattern)):
        depth, commas = 0, [start]
        for end in range(start, len(pattern)):
            depth += {"{": 1, "}": -1}.get(pattern[end], 0)
            if depth == 0:
                break
            if depth == 1 and pattern[end] == ",":
                commas.append(end)
        else:
            continue  # it has no end
        parts = [pattern[i + 1 : j] for i, j in itertools.pairwise([*commas, end])]
        if match := re.fullmatch(r"(\d+)\.\.(\d+)", parts[0]):
            parts = _numbers(*match.groups())
        elif len(parts) == 1:
            continue
        rest = expand(pattern[end + 1 :])
        return [f"{pattern[:start]}{text}{tail}" for part in parts for text in expand(part) for tail in rest]
    return [pattern]


def _numbers(first: str, last: str) -> list[str]:
    """The numbers from first to last, of equal width if one of them begins with 0."""
    width = max(len(first), len(last)) if any(re.match("0.", end) for end in (first, last)) else 0
    step = 1 if int(first) <= int(last) else -1
    return [f"{number:0{width}d}" for number in range(int(first), int(last) + step, step)]


def find_column(there: Iterable[str], named: str | None, usual: Sequence[str], what: str) -> str | None:
    """The column that an address names; if it names none, the first of the `usual` names that is there.

    `named`: the column of the address; "" asks for none, None leaves the choice to the usual names, which are
    compared without case. `what` begins the UserError for a column that is not there: "table 'a.csv'".
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
    """Labels as numbers of classes, and the classes: the sorted different values, as text.

    Whole numbers are sorted by size. None, "" and -1 mean no label, as in the test splits of many data sets.
    """
    # pandas turns whole numbers into floats where one is missing.
    values = [int(v) if isinstance(v, float) and v.is_integer() else v for v in values]
    texts = ["" if value is None or value != value else str(value).strip() for value in values]
    found = {text for text in texts if text not in ("", "-1")}
    whole = all(re.fullmatch(r"-?\d+", text) for text in found)
    classes = tuple(sorted(found, key=(lambda text: (int(text), text)) if whole else None))
    number = {name: label for label, name in enumerate(classes)}
    return np.array([number.get(text, -1) for text in texts], np.int32), classes
