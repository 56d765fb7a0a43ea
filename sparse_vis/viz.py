"""Pictures: arrays in, figures out."""

from __future__ import annotations

import matplotlib
import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure


def token_colours(count: int) -> Float[np.ndarray, "count 3"]:
    """One RGB colour per token, the same for every image."""
    return matplotlib.colormaps["hsv"](np.arange(count) / count)[:, :3].astype(np.float32)


def token_sheet(
    images: UInt8[np.ndarray, "N H W 3"],
    reconstructions: Float[np.ndarray, "N h w 3"],
    L: Float[np.ndarray, "N n r"],
    grid: tuple[int, int],
    masks: UInt8[np.ndarray, "N H W"],
) -> Figure:
    """One row per image: image, reconstruction, true masks, argmax L, and each token's localization map.

    Args:
        images: (N, H, W, 3) uint8. reconstructions: (N, h, w, 3) in [0, 1].
        L: (N, n, r) localization matrices. grid: (rows, columns) of the n patches.
        masks: (N, H, W) uint8 instances, 0 for background.

    Returns:
        A matplotlib Figure.
    """
    count, tokens = len(images), L.shape[-1]
    colours = token_colours(tokens)
    titles = ["image", "reconstruction", "true masks", "argmax L", *(f"token {i}" for i in range(tokens))]
    figure = Figure(figsize=(0.95 * len(titles), 1.05 * count + 0.3), layout="constrained")
    axes = figure.subplots(count, len(titles), squeeze=False)
    for row in range(count):
        maps = L[row].reshape(*grid, tokens)
        instances = np.ma.masked_equal(masks[row], 0)
        pictures = [images[row], reconstructions[row], instances, colours[maps.argmax(-1)]]
        for axis, picture in zip(axes[row], pictures, strict=False):
            axis.imshow(picture, cmap="Set1", vmin=1, vmax=9, interpolation="nearest")
        for token in range(tokens):
            axes[row, 4 + token].imshow(
                maps[..., token], cmap="magma", vmin=0, vmax=1, interpolation="nearest"
            )
        for axis in axes[row]:
            axis.set(xticks=[], yticks=[])
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=7)
    return figure
