"""Which patches of a masked view the encoder sees (docs/method.md section 6).

Every patch gets a random score, and the patches with the smallest scores are kept. The kinds of mask differ
in where they lower the scores.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

FOCUS_WIDTH = (0.1, 0.5)  # range of the Gaussian's standard deviation, in sides of the grid


def visible_count(patches: int, ratio: float) -> int:
    """Number of patches kept: ⌊(1 - ratio) n⌋, in Python's floating point as published, but at least one."""
    return max(int((1 - ratio) * patches), 1)


def _pick(uniform: Float[Array, ""], count: int | Array) -> Int[Array, ""]:
    """Integer in [0, count), from a number in [0, 1)."""
    return jnp.floor(uniform * count).astype(jnp.int32)


def _focus(uniform: Float[Array, " 4"], grid: tuple[int, int], probability: float) -> Float[Array, "gh gw"]:
    """exp(-dist² / 2 (σ side)²) around a random patch, or, if no focus is drawn, zero everywhere."""
    height, width = grid
    # Masks recorded from the published code show that the centre is a patch, not a continuous position.
    row, column = _pick(uniform[0], height), _pick(uniform[1], width)
    side = math.sqrt(height * width)  # of the square of equal area
    sigma = side * (FOCUS_WIDTH[0] + (FOCUS_WIDTH[1] - FOCUS_WIDTH[0]) * uniform[2])
    distance2 = (jnp.arange(height)[:, None] - row) ** 2 + (jnp.arange(width) - column) ** 2
    return jnp.where(uniform[3] < probability, jnp.exp(-distance2 / (2 * sigma**2)), 0.0)


def _block(uniform: Float[Array, " 4"], grid: tuple[int, int], keep: int) -> Float[Array, "gh gw"]:
    """1 inside a random square with sides of ⌊√keep⌋ patches, 0 elsewhere."""
    inside = []
    for u, patches in zip(uniform[:2], grid, strict=True):
        side = min(math.isqrt(keep), patches)
        start = _pick(u, patches - side + 1)
        position = jnp.arange(patches)
        inside.append((position >= start) & (position < start + side))
    return (inside[0][:, None] & inside[1]).astype(jnp.float32)


def visible_patches(
    key: PRNGKeyArray, grid: tuple[int, int], ratio: float, kind: str, focus_probability: float = 0.5
) -> Int[Array, " keep"]:
    """Indices of the patches a masked view keeps, ascending, row-major.

    Args:
        key: of this view. grid: (gh, gw), patches per column and per row. ratio: share of dropped patches.
        kind: "uniform"; "gaussian", which favours patches near a random centre with `focus_probability` and
            is uniform otherwise; "block", which keeps a random square and fills up uniformly.
    """
    patches = grid[0] * grid[1]
    keep = visible_count(patches, ratio)
    # One random draw for scores and centre: on CPU each further one costs half a second of compilation.
    uniform = jax.random.uniform(key, (patches + 4,), jnp.float32)
    score, rest = uniform[:patches].reshape(grid), uniform[patches:]
    if kind == "gaussian":
        score -= _focus(rest, grid, focus_probability)
    elif kind == "block":
        score -= _block(rest, grid, keep)  # below all scores outside: the whole square is kept
    return jnp.sort(jnp.argsort(score.ravel())[:keep]).astype(jnp.int32)
