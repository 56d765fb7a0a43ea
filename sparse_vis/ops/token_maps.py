"""Maps of tokens, the columns of L: moving and replacing one of them, and finding the one of an object."""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Float

Localization = Float[np.ndarray, "n r"]
Map = Float[np.ndarray, "rows columns"]
Grid = tuple[int, int]  # rows and columns of the n patches


def with_map(L: Localization, token: int, column: Float[np.ndarray, " n"]) -> Localization:
    """L with a new map for one token; the other tokens share the rest in their old proportions.

    Where the token had all the weight, the others share evenly. A map of zeros removes the token: the result
    is the softmax over the other tokens.

    Args:
        L: rows that sum to one, r ≥ 2. column: the new map, from 0 to 1.
    """
    others = np.delete(L, token, axis=1)
    total = others.sum(axis=1, keepdims=True)
    shares = np.where(total > 0, others / np.where(total > 0, total, 1), 1 / others.shape[1])
    return np.insert(shares * (1 - column[:, None]), token, column, axis=1).astype(L.dtype)


def move_map(map_: Map, shift: tuple[int, int]) -> Map:
    """A map moved by whole patches (down, right); entries moved out of the image are lost, new ones are 0."""
    (rows, columns), moved = map_.shape, np.zeros_like(map_)
    down, right = (max(-side, min(by, side)) for by, side in zip(shift, map_.shape, strict=True))
    into = np.s_[max(down, 0) : rows + min(down, 0), max(right, 0) : columns + min(right, 0)]
    out_of = np.s_[max(-down, 0) : rows - max(down, 0), max(-right, 0) : columns - max(right, 0)]
    moved[into] = map_[out_of]
    return moved


def move_token(L: Localization, token: int, shift: tuple[int, int], grid: Grid) -> Localization:
    """L with one token's map moved as by `move_map`."""
    return with_map(L, token, move_map(L[:, token].reshape(grid), shift).ravel())


def object_token(L: Localization, grid: Grid) -> int:
    """The token that most likely shows an object: the one with the most patches that is not background.

    A patch belongs to the token of largest L. A token is background if it has more than a quarter of the
    patches at the image's border; if all tokens are, the one with the fewest of these patches is returned.
    """
    winners = np.asarray(L).argmax(axis=1).reshape(grid)
    inside = np.zeros(grid, bool)
    inside[1:-1, 1:-1] = True
    count = functools.partial(np.bincount, minlength=L.shape[1])
    area, border = count(winners.ravel()), count(winners[~inside])
    score = np.where(border > border.sum() / 4, -border, area)
    return int(np.where(area > 0, score, -len(L) - 1).argmax())
