"""Pictures as NumPy arrays, for the figures of figures.py, the report and the page of `explore`.

Overlays are RGBA, one pixel per patch. `grid` is (rows, columns) of the n patches, in row-major order.
"""

from __future__ import annotations

import matplotlib
import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from sparse_vis.ops.moments import Moments
from sparse_vis.ops.token_maps import Grid, Localization, Map

Image8 = UInt8[np.ndarray, "H W 3"]
Overlay = UInt8[np.ndarray, "rows columns 4"]

# Opacity of a token's colour where its map is 1, of black where it is 0, and of a hard segmentation.
TINT, SHADE, SEGMENT = 0.4, 0.78, 0.6

# Of the first tokens. Colour-blind people can tell any two apart, too: tests/viz/test_viz.py.
COLOURS = (
    "#ee9911", "#1100ff", "#55bbff", "#881133", "#eeeebb", "#4433aa", "#44ffff", "#44aa66", "#224477",
    "#ffee00", "#776600", "#007777", "#77ff77", "#bb44ff", "#ff44cc", "#ff99bb",
)  # fmt: skip


def token_colours(count: int) -> Float[np.ndarray, "count 3"]:
    """One RGB colour per token, the same for every image; tokens beyond COLOURS get hues between theirs."""
    more = max(0, count - len(COLOURS))
    hues = matplotlib.colormaps["hsv"]((np.arange(more) + 0.5) / max(1, more))[:, :3]
    fixed = matplotlib.colors.to_rgba_array(COLOURS[:count])[:, :3]
    return np.concatenate([fixed, hues]).astype(np.float32)


def segments(L: Float[np.ndarray, "*N n r"], grid: Grid) -> Int[np.ndarray, "*N rows columns"]:
    """Hard segmentation: the token of largest L at every patch, 0 … r−1."""
    return L.argmax(axis=-1).reshape(*L.shape[:-2], *grid)


def segment_overlay(L: Localization, grid: Grid) -> Overlay:
    """The hard segmentation in the tokens' colours, as an overlay of the image."""
    colours = token_colours(L.shape[-1])[segments(L, grid)]
    alpha = np.full((*grid, 1), SEGMENT)
    return np.uint8(np.round(255 * np.concatenate([colours, alpha], axis=-1)))


def map_overlay(weights: Map, colour: Float[np.ndarray, " 3"] | None = None) -> Overlay:
    """A map as an overlay of the image: dark where it is 0; transparent, or tinted, where it is largest."""
    weights = weights / max(float(weights.max()), 1e-12)
    tint, shade = (0 if colour is None else TINT) * weights, SHADE * (1 - weights)
    rgba = np.zeros((*weights.shape, 4))
    rgba[..., 3] = tint + shade
    if colour is not None:
        rgba[..., :3] = colour * (tint / (tint + shade))[..., None]
    return np.uint8(np.round(255 * rgba))


def token_overlay(L: Localization, token: int, grid: Grid) -> Overlay:
    """A token's map in its colour, relative to its largest entry, as an overlay of the image."""
    return map_overlay(L[:, token].reshape(grid), token_colours(L.shape[-1])[token])


def lay_over(image: Image8, overlay: Overlay, *, smooth: bool = True) -> Image8:
    """Composite an overlay over its image, cropped by the caller to the area that the patches cover.

    The overlay is enlarged bilinearly if `smooth`, else by nearest neighbour.
    """
    resample = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    large = Image.fromarray(overlay).resize((image.shape[1], image.shape[0]), resample)
    return np.asarray(Image.alpha_composite(Image.fromarray(image).convert("RGBA"), large).convert("RGB"))


def pca_colours(x: Float[np.ndarray, "N n d"], grid: Grid) -> Float[np.ndarray, "N rows columns 3"]:
    """The first three principal components of patch features (U or Z, d ≥ 3) as red, green and blue.

    The components are fitted to all patches of all images, so that colours are comparable between images.
    Each is scaled so that its 1st and 99th percentiles become 0 and 1; its sign makes its largest entry
    positive.
    """
    moments = Moments.empty(x.shape[-1]).update(x)
    axes = moments.components(3)
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(3)])
    scores = (np.asarray(x, np.float64) - moments.mean) @ axes
    low, high = np.percentile(scores, [1, 99], axis=(0, 1))
    colours = np.clip((scores - low) / np.maximum(high - low, 1e-12), 0, 1)
    return colours.astype(np.float32).reshape(len(x), *grid, 3)


def prototype_votes(L: Float[np.ndarray, "N n r"], p: Float[np.ndarray, "N r"]) -> Float[np.ndarray, "N n"]:
    """Vote of every patch for a prototype, 0 to 1: the tokens' probabilities p of it, weighted by L."""
    return np.einsum("inr,ir->in", L, p)


def strongest(votes: Float[np.ndarray, "N n"], count: int) -> Int[np.ndarray, " found"]:
    """Indices of the images with the highest vote of any patch, at most `count`, highest first."""
    return np.argsort(-votes.max(axis=1), kind="stable")[:count]
