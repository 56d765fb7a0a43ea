"""Matplotlib figures from arrays (docs/visualization.md), whose parts `overlays` makes.

Images are uint8, with sides that are multiples of the patch; reconstructions are in [0, 1]; `grid` is (rows,
columns) of the n patches of L.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

import matplotlib
import numpy as np
from jaxtyping import Float, Int, UInt8
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sparse_vis.ops.token_maps import Grid
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.paths import AnyPath, as_path
from sparse_vis.viz import overlays

Images = UInt8[np.ndarray, "N H W 3"]
Decoded = Float[np.ndarray, "N h w 3"]
Localizations = Float[np.ndarray, "N n r"]
Masks = UInt8[np.ndarray, "N H W"]


def panels(
    rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str], labels: Sequence[str] = (), *, side=0.95
) -> Figure:
    """A sheet of pictures without axes.

    Args:
        rows: pictures, (h, w, 3) uint8 or float in [0, 1], or (h, w), shown in false colours.
        titles: of the columns. labels: of the rows. side: of a picture in inches.
    """
    figure = Figure(figsize=(side * len(titles), 1.1 * side * len(rows) + 0.3), layout="constrained")
    axes = figure.subplots(len(rows), len(titles), squeeze=False)
    for line, row in zip(axes, rows, strict=True):
        for axis, picture in zip(line, row, strict=True):
            axis.imshow(picture, cmap="magma", vmin=0, vmax=1, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title, fontsize=7)
    for axis, name in zip(axes[:, 0], labels, strict=False):
        axis.set_ylabel(name, fontsize=7)
    return figure


def token_sheet(
    images: Images, reconstructions: Decoded, L: Localizations, grid: Grid, masks: Masks | None = None
) -> Figure:
    """One row per image: image, reconstruction, true masks (0: background), argmax L, each token's map.

    A map is black where it is smallest and white where it is largest.
    """
    r, maps = L.shape[-1], L.swapaxes(1, 2).reshape(len(L), -1, *grid)
    maps = maps - maps.min(axis=(2, 3), keepdims=True)
    maps /= np.maximum(maps.max(axis=(2, 3), keepdims=True), 1e-12)
    parts = overlays.token_colours(r)[overlays.segments(L, grid)]
    columns = {"image": images, "reconstruction": reconstructions}
    if masks is not None:
        columns["true masks"] = np.array([(1, 1, 1), *matplotlib.colormaps["Set1"].colors])[masks % 10]
    columns["argmax L"] = parts
    rows = [[*row, *tokens] for *row, tokens in zip(*columns.values(), maps, strict=True)]
    return panels(rows, [*columns, *(f"token {i}" for i in range(r))])


def localization_maps(images: Images, L: Localizations, grid: Grid) -> Figure:
    """One row per image: the image alone, with argmax L over it, and with each token's map in its colour.

    Every map is shown relative to its largest entry.
    """
    rows = []
    for image, maps in zip(images, L, strict=True):
        hard = overlays.lay_over(image, overlays.segment_overlay(maps, grid), smooth=False)
        rows.append([image, hard, *_token_maps(image, maps, grid)])
    return panels(rows, ["image", "argmax L", *(f"token {i}" for i in range(L.shape[-1]))])


def _token_maps(image: np.ndarray, L: np.ndarray, grid: Grid) -> list[np.ndarray]:
    """The image with the map of each token."""
    shown = (overlays.token_overlay(L, token, grid) for token in range(L.shape[-1]))
    return [overlays.lay_over(image, overlay) for overlay in shown]


def reconstructions(images: Images, decoded: Decoded) -> Figure:
    """Images above, their reconstructions below."""
    return panels([list(images), list(decoded)], [f"image {i}" for i in range(len(images))], side=1.2)


def matched_tokens(pair: Images, L: Localizations, match: Int[np.ndarray, " r"], grid: Grid) -> Figure:
    """Two views or images in two rows: the first one's tokens, and below each its match, in the same colour.

    `match`: for each token of the first, one of the second (`ops.matching.exact_match`, `entropic_match`).
    """
    ordered = L[0], L[1][:, match]
    rows = [[image, *_token_maps(image, maps, grid)] for image, maps in zip(pair, ordered, strict=True)]
    return panels(rows, ["image", *(f"{i} → {j}" for i, j in enumerate(match))])


def features_pca(
    images: Images, U: Float[np.ndarray, "N n d"], Z: Float[np.ndarray, "N n d"], grid: Grid
) -> Figure:
    """Images, and below them the first three principal components of U and of Z = L S."""
    rows = [list(images), list(overlays.pca_colours(U, grid)), list(overlays.pca_colours(Z, grid))]
    titles = [f"image {i}" for i in range(len(images))]
    return panels(rows, titles, ("image", "U", "Z = L S"), side=1.2)


def prototype_page(
    images: Images,
    L: Localizations,
    p: Float[np.ndarray, "N P r"],
    grid: Grid,
    names: Sequence[str],
    count: int = 8,
) -> Figure:
    """One row per prototype: the images with the highest votes for it, darkened where the vote is low.

    Args:
        p: probabilities of P prototypes for every token. names: of the P prototypes. count: images per row.
    """
    rows = []
    for k in range(len(names)):
        votes = overlays.prototype_votes(L, p[:, k])
        shades = {i: overlays.map_overlay(votes[i].reshape(grid)) for i in overlays.strongest(votes, count)}
        rows.append([overlays.lay_over(images[i], shade) for i, shade in shades.items()])
    return panels(rows, [f"{i + 1}." for i in range(count)], names)


def read_metrics(path: str | AnyPath) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Every number of a run's metrics.jsonl: name → (steps, values), in the file's order.

    An incomplete last line, as of a killed run, is ignored. Raises UserError for a missing file or a damaged
    line.
    """
    found: dict[str, list[tuple[int, float]]] = {}
    number = 0
    try:
        text = as_path(path).read_text()
        for line in text[: text.rfind("\n") + 1].splitlines():
            number += 1
            row = json.loads(line)
            for name in [name for name in row if name not in ("step", "time")]:
                found.setdefault(name, []).append((row["step"], row[name]))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); give a run's metrics.jsonl.") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise UserError(f"{path} is damaged at line {number}; delete this line and all after it.") from None
    return {name: tuple(map(np.array, zip(*rows, strict=True))) for name, rows in found.items()}


def curve(axis: Axes, steps: np.ndarray, values: np.ndarray, **line) -> None:
    """Plot values over steps, on a logarithmic axis if they are positive and differ by a factor above 20."""
    axis.plot(steps, values, **line)
    if values.min() > 0 and values.max() > 20 * values.min():
        axis.set_yscale("log")


def training_curves(
    metrics: dict[str, tuple[np.ndarray, np.ndarray]], names: Sequence[str], columns: int = 4
) -> Figure:
    """One small plot over the steps for each named number of a run (from `read_metrics`)."""
    lines = -(-len(names) // columns)
    figure = Figure(figsize=(2.4 * columns, 1.8 * lines), layout="constrained")
    for axis, name in zip(figure.subplots(lines, columns, squeeze=False).flat, names, strict=False):
        curve(axis, *metrics[name], linewidth=1.5)
        axis.set_title(name, fontsize=8)
        axis.set_xlabel("step", fontsize=7)
        axis.tick_params(labelsize=7)
    for axis in figure.axes[len(names) :]:
        axis.set_axis_off()
    return figure
