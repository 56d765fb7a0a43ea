"""Edits of the tokens S and of their maps L, as a list that `replay` applies in order.

An edit is a dictionary of JSON types: "kind", one of KINDS, and that kind's fields. Example:
[{"kind": "erase", "token": 3}, {"kind": "move", "token": 0, "down": -2, "right": 5}].
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from sparse_vis.ops.token_maps import Grid, Localization, Map, move_map, with_map
from sparse_vis.runtime.errors import UserError, reworded

MOST = 1000  # most edits in a list
FURTHEST = 1000  # most patches by which a map is moved
Number = int | float


class Edited(NamedTuple):
    """Tokens and maps; the features that are decoded are L @ S."""

    S: Float[np.ndarray, "r d"]
    L: Localization


def replay(S: Float[np.ndarray, "r d"], L: Localization, grid: Grid, edits: Any) -> Edited:
    """S and L after all edits; rows of L still sum to one. Equal input gives equal bits.

    Args:
        S, L: float32; L's rows sum to one. grid: rows and columns of the n patches, row-major.
        edits: list of dictionaries.

    Raises:
        UserError: an edit is of no known kind, has wrong fields, or is impossible, such as erasing the last
            token. The edit is named by its position, counted from 1.
    """
    if not isinstance(edits, list | tuple):
        raise UserError("the edits are not a list; give a list of dictionaries.")
    if len(edits) > MOST:
        raise UserError(f"there are more than {MOST} edits; undo some.")
    found = Edited(S, L)
    for position, edit in enumerate(edits, start=1):
        with reworded(f"edit {position}: {{}}".format):
            function, fields = checked(edit, found)
            found = function(found, grid, **fields)
    return found


def set_map(found: Edited, token: int, column: Float[np.ndarray, " n"]) -> Edited:
    """Set a token's map, as `with_map`, but tokens whose map is zero everywhere stay so."""
    present = found.L.any(axis=0)
    present[token] = True
    if present.sum() < 2:
        raise UserError(f"token {token} is the only one left; one must stay.")
    L = np.zeros_like(found.L)
    L[:, present] = with_map(found.L[:, present], int(present[:token].sum()), column.astype(L.dtype))
    return Edited(found.S, L)


def temper(found: Edited, grid: Grid, power: Number) -> Edited:
    """L at another temperature: L^power, divided by its row sums, where power = tau / new tau."""
    with np.errstate(divide="ignore"):
        logits = power * np.log(found.L.astype(np.float64))
    L = np.exp(logits - logits.max(axis=1, keepdims=True))
    return Edited(found.S, (L / L.sum(axis=1, keepdims=True)).astype(found.L.dtype))


def erase(found: Edited, grid: Grid, token: int) -> Edited:
    """Remove a token: L becomes the softmax over the others."""
    return set_map(found, token, np.zeros_like(found.L[:, token]))


def move(found: Edited, grid: Grid, token: int, down: int, right: int) -> Edited:
    """Move a map by whole patches; what leaves the picture is lost."""
    return set_map(found, token, move_map(found.L[:, token].reshape(grid), (down, right)).ravel())


def copy(found: Edited, grid: Grid, token: int, down: int, right: int) -> Edited:
    """Add a moved copy to a map; where both are, the larger entry counts."""
    map_ = found.L[:, token].reshape(grid)
    return set_map(found, token, np.maximum(map_, move_map(map_, (down, right))).ravel())


def scale(found: Edited, grid: Grid, token: int, factor: Number) -> Edited:
    """Enlarge a map around its centre of mass, or shrink it if the factor is below 1."""
    return set_map(found, token, stretched(found.L[:, token].reshape(grid), (factor, factor)).ravel())


def mirror(found: Edited, grid: Grid, token: int, axis: str) -> Edited:
    """Flip a map, "horizontal" or "vertical", around its centre of mass."""
    factors = (1, -1) if axis == "horizontal" else (-1, 1)
    return set_map(found, token, stretched(found.L[:, token].reshape(grid), factors).ravel())


def stretched(map_: Map, factors: tuple[Number, Number]) -> Map:
    """A map stretched along rows and columns around its centre of mass (bilinear), zero outside.

    The centre is rounded to half a patch, so that a factor of -1 mirrors exactly.
    """
    if not (mass := float(map_.sum())):
        return map_
    weights = []
    for along, factor in zip((map_.sum(axis=1), map_.sum(axis=0)), factors, strict=True):
        places = np.arange(len(along))
        centre = round(2 * float(places @ along) / mass) / 2
        out_of = centre + (places - centre) / factor
        weights.append(np.maximum(0, 1 - np.abs(out_of[:, None] - places)))
    return (weights[0] @ map_ @ weights[1].T).clip(0, 1).astype(map_.dtype)


def paint(found: Edited, grid: Grid, token: int, patches: list[int], amount: Number) -> Edited:
    """Set a map to `amount`, from 0 to 1, at these patches (row-major numbers)."""
    column = found.L[:, token].copy()
    column[patches] = amount
    return set_map(found, token, column)


def replace(found: Edited, grid: Grid, token: int, vector: list[Number], amount: Number) -> Edited:
    """Move S of a token towards a vector: (1 - amount) S + amount * vector."""
    S = found.S.copy()
    S[token] = (1 - amount) * S[token] + amount * np.asarray(vector, S.dtype)
    return Edited(S, found.L)


# By name; the fields of an edit are the arguments after (found, grid).
KINDS = {edit.__name__: edit for edit in (temper, erase, move, copy, scale, mirror, paint, replace)}


def _number(x: Any, low: Number, high: Number, kinds: tuple[type, ...] = (int, float)) -> bool:
    return type(x) in kinds and low <= x <= high  # not for NaN


def _numbers(x: Any, low: Number, high: Number, kinds: tuple[type, ...] = (int, float)) -> bool:
    return isinstance(x, list) and all(_number(item, low, high, kinds) for item in x)


# Field -> whether a value is possible, and what it must be.
FIELDS = {
    "token": (lambda x, found: _number(x, 0, len(found.S) - 1, (int,)), "the number of a token"),
    "down": (lambda x, _: _number(x, -FURTHEST, FURTHEST, (int,)), "a number of patches"),
    "right": (lambda x, _: _number(x, -FURTHEST, FURTHEST, (int,)), "a number of patches"),
    "factor": (lambda x, _: _number(x, 0.1, 10), "a number from 0.1 to 10"),
    "power": (lambda x, _: _number(x, 0.01, 100), "a number from 0.01 to 100"),
    "amount": (lambda x, _: _number(x, 0, 1), "a number from 0 to 1"),
    "axis": (lambda x, _: x in ("horizontal", "vertical"), "horizontal or vertical"),
    "patches": (lambda x, f: _numbers(x, 0, len(f.L) - 1, (int,)), "a list of numbers of patches"),
    "vector": (
        lambda x, f: _numbers(x, -1e6, 1e6) and len(x) == f.S.shape[1], "as many numbers as S has columns",
    ),
}  # fmt: skip


def checked(edit: Any, found: Edited) -> tuple[Any, dict[str, Any]]:
    """The function of an edit, and its fields. Raises UserError for a wrong one."""
    kind = edit.get("kind") if isinstance(edit, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"{kind!r} is not a kind of edit; give one of {', '.join(KINDS)}.")
    function = KINDS[kind]
    _, _, *names = inspect.signature(function).parameters
    if {*edit} != {"kind", *names}:
        raise UserError(f"{kind} takes {', '.join(names)}; give these fields and no others.")
    for name in names:
        possible, what = FIELDS[name]
        if not possible(edit[name], found):
            raise UserError(f"{name} of {kind} is not {what}; change it.")
    return function, {name: edit[name] for name in names}
