"""Edit S and L of an image, and decode Z' = L' S'."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8

from sparse_vis import api
from sparse_vis.evals.pixels.psnr_ssim import psnr
from sparse_vis.models.stellar import Stellar
from sparse_vis.ops.matching import exact_match
from sparse_vis.types import Features


def with_map(
    L: Float[np.ndarray, "n r"], token: int, column: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "n r"]:
    """L with a new map for one token; the other tokens share the rest in their old proportions.

    A map of zeros removes the token: the result is the softmax over the other tokens.

    Args:
        L: (n, r) with rows that sum to one, r ≥ 2. token: index. column: (n,) new map, from 0 to 1.

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
    """A token's map, moved horizontally by a quarter of the image, away from the nearer edge.

    Args:
        L: (n, r). token: index. grid: (rows, columns) of the n patches.

    Returns:
        (column, step): (n,) the moved map, zero-filled; number of patches moved, negative to the left.
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
        S, L: of the image. partner: (r, d) for each token its replacement in "swapped".
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
        model, params: from sparse_vis.load, with the tokenizer if the model needs one.
        Z: (N, n, d). size: (height, width) of the image in pixels.
    """
    features = Features(cls=None, sparse=None, dense=None, spatial=None, lowrank=jnp.asarray(Z), size=size)
    return np.asarray(api.reconstruct(model, params, features))


def partners(count: int) -> list[int | None]:
    """For each image, the index of the image with which it swaps tokens; None if there is only one.

    Neighbours form pairs; the last of an odd number takes the one before.
    """
    return [None if count == 1 else i ^ 1 if i ^ 1 < count else i - 1 for i in range(count)]


def letter(i: int) -> str:
    """A, B, …, Z, A1, B1, …"""
    return chr(ord("A") + i % 26) + (str(i // 26) if i >= 26 else "")


@dataclass(frozen=True)
class Pair:
    """An image's tokens, and their replacements when tokens are swapped.

    Attributes:
        S, L: of the image, (r, d) and (n, r). partner: (r, d), for each token its match in the other image.
        match: (r,) indices of the matches. other: letter of the other image, or None.
    """

    S: Float[np.ndarray, "r d"]
    L: Float[np.ndarray, "n r"]
    partner: Float[np.ndarray, "r d"]
    match: Int[np.ndarray, " r"]
    other: str | None


def make_pairs(S: Float[np.ndarray, "N r d"], L: Float[np.ndarray, "N n r"]) -> list[Pair]:
    """A Pair for every image, tokens matched one to one with those of its partner.

    Args:
        S, L: (N, r, d) and (N, n, r) of all images.
    """
    others = partners(len(S))
    theirs = S[[i if other is None else other for i, other in enumerate(others)]]
    matches = np.asarray(exact_match(jnp.asarray(S), jnp.asarray(theirs)))
    return [
        Pair(S[i], L[i], theirs[i][matches[i]], matches[i], None if other is None else letter(other))
        for i, other in enumerate(others)
    ]


def _quality(pixels: np.ndarray, image: np.ndarray) -> list[float] | None:
    """PSNR of decoded pictures against one image; None if sizes differ (VQ: 256 px for 224 px)."""
    seen = image[: pixels.shape[1], : pixels.shape[2]].astype(np.float32) / 255
    if seen.shape != pixels.shape[1:]:
        return None
    return psnr(pixels, np.broadcast_to(seen, pixels.shape)).tolist()


def decoded(
    model: Stellar, params: dict, image: UInt8[np.ndarray, "H W 3"], pair: Pair, *, edits: bool
) -> tuple[np.ndarray, float | None, list[dict[str, tuple[np.ndarray, str]]]]:
    """Decode an image's tokens, and all edits of them.

    Args:
        model, params: from sparse_vis.load. image: as encoded. pair: its tokens. edits: whether to edit.

    Returns:
        (reconstruction, its PSNR in dB or None, for each token: edit → (pixels, what was done)).
    """
    grid, tokens = model.grid(*image.shape[:2]), range(len(pair.S))
    found = edited(pair.S, pair.L, pair.partner, grid) if edits else {}
    if pair.other is None:
        found.pop("swapped", None)
    Z = np.concatenate([(pair.L @ pair.S)[None], *found.values()])
    pixels = decode(model, params, Z, image.shape[:2])
    quality = _quality(pixels, image) or [None] * len(pixels)
    steps = [moved_map(pair.L, i, grid)[1] for i in tokens]
    words = {
        "removed": lambda i: "removed",
        "moved": lambda i: f"map moved {abs(steps[i])} patches {'right' if steps[i] > 0 else 'left'}",
        "swapped": lambda i: f"replaced by token {pair.match[i]} of {pair.other}",
    }
    views: list[dict] = [{} for _ in tokens]
    for k, (edit, i) in enumerate(((edit, i) for edit in found for i in tokens), start=1):
        close = "" if quality[k] is None else f", PSNR {quality[k]:.1f}\u00a0dB"
        views[i][edit] = pixels[k], f"{words[edit](i)}{close}"
    return pixels[0], quality[0], views
