"""Edits of tokens and what the decoder makes of them: pixels of Z' = L' S'."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sparse_vis import api
from sparse_vis.models.stellar import Stellar
from sparse_vis.types import Features


def with_map(
    L: Float[np.ndarray, "n r"], token: int, column: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "n r"]:
    """L with another map for one token; the other tokens share what it leaves in the old proportions.

    With zeros for the map the token is removed: a softmax over the other tokens alone.

    Args:
        L: (n, r) with rows that sum to one, r ≥ 2. token: its number. column: (n,) from 0 to 1.

    Returns:
        (n, r) with rows that sum to one.
    """
    others = np.delete(L, token, axis=1)
    total = others.sum(axis=1, keepdims=True)
    shares = np.where(total > 0, others / np.where(total > 0, total, 1), 1 / others.shape[1])
    return np.insert(shares * (1 - column[:, None]), token, column, axis=1).astype(L.dtype)


def moved_map(
    L: Float[np.ndarray, "n r"], token: int, grid: tuple[int, int]
) -> tuple[Float[np.ndarray, " n"], int]:
    """A token's map, moved sideways by a quarter of the image, to where there is more room.

    Args:
        L: (n, r). token: its number. grid: (rows, columns) of the n patches.

    Returns:
        (column, step): (n,) the moved map, zero where nothing came from; patches moved, negative to the left.
    """
    picture = L[:, token].reshape(grid)
    centre = (picture.sum(axis=0) * (np.arange(grid[1]) + 0.5)).sum() / picture.sum()
    step = max(1, grid[1] // 4) * (1 if centre <= grid[1] / 2 else -1)
    moved = np.roll(picture, step, axis=1)
    moved[:, : max(step, 0)] = 0
    moved[:, grid[1] + min(step, 0) :] = 0
    return moved.reshape(-1), step


def edited(
    S: Float[np.ndarray, "r d"],
    L: Float[np.ndarray, "n r"],
    partner: Float[np.ndarray, "r d"],
    grid: tuple[int, int],
) -> dict[str, Float[np.ndarray, "r n d"]]:
    """Z' of every edit of every token of an image.

    Args:
        S, L: of the image. partner: (r, d) for each token the one that takes its place in "swapped".
        grid: (rows, columns) of the n patches.

    Returns:
        edit → (r, n, d): "removed", "moved" (sideways) and "swapped" (S of the partner, the same L).
    """
    tokens = range(len(S))
    nowhere = np.zeros(len(L), L.dtype)
    swapped = [np.where(np.arange(len(S))[:, None] == i, partner[i], S) for i in tokens]
    return {
        "removed": np.stack([with_map(L, i, nowhere) @ S for i in tokens]),
        "moved": np.stack([with_map(L, i, moved_map(L, i, grid)[0]) @ S for i in tokens]),
        "swapped": np.stack([L @ s for s in swapped]),
    }


def decode(
    model: Stellar, params: dict, Z: Float[np.ndarray, "N n d"], size: tuple[int, int]
) -> Float[np.ndarray, "N h w 3"]:
    """Pixels of features, clipped to [0, 1].

    Args:
        model, params: of sparse_vis.load, with the tokenizer if the model needs one.
        Z: (N, n, d). size: (height, width) of the image in pixels.
    """
    features = Features(cls=None, sparse=None, dense=None, spatial=None, lowrank=jnp.asarray(Z), size=size)
    return np.asarray(api.reconstruct(model, params, features))
