"""The HTML page; everything is inline, so that the single file works offline."""

from __future__ import annotations

import pathlib
from dataclasses import dataclass

import jinja2
import numpy as np
from jaxtyping import UInt8

from sparse_vis.report.cards import SMALL, Card, data_uri
from sparse_vis.report.prototypes import Page
from sparse_vis.report.tables import Table
from sparse_vis.viz.pictures import lay_over, map_overlay

GENERATOR = "sparse_vis.report"  # identifies an earlier report, which may be overwritten
EDITS = {
    "removed": "is removed; the others share its place",
    "moved": "has its map moved sideways by a quarter of the image",
    "swapped": "is replaced by its match in another image",
}


@dataclass(frozen=True)
class Contents:
    """Contents of a report; a string instead of a part says why it is absent.

    Attributes:
        title: of the page. facts: (name, value) at its top. origin: description of the images.
        cards: the gallery. edits, reconstruction: "", or why there are none.
        prototypes: Pages. pictures: for each Page, (data URI, label) of its regions.
        voters: number of images that voted. curves: SVG elements. evaluations: tables. health: table.
        settings: (dotted name, value).
    """

    title: str
    facts: list[tuple[str, str]]
    origin: str
    cards: list[Card]
    edits: str
    reconstruction: str
    prototypes: list[Page]
    pictures: list[list[tuple[str, str]]]
    voters: int
    curves: list[str] | str
    evaluations: list[Table] | str
    health: Table
    settings: list[tuple[str, str]]


def region_pictures(
    pages: list[Page],
    images: UInt8[np.ndarray, "N H W 3"],
    names: list[str],
    grid: tuple[int, int],
    patch: int,
) -> list[list[tuple[str, str]]]:
    """For each prototype and region: (data URI, label); pictures are darkened where the vote is low.

    Args:
        pages: of the prototypes. images, names: of all voters. grid: (rows, columns) of patches.
        patch: side in pixels.
    """
    whole = images[:, : grid[0] * patch, : grid[1] * patch]
    made = []
    for page in pages:
        made.append([
            (data_uri(lay_over(whole[i], map_overlay(votes.reshape(grid))), SMALL),
             f"{names[i]}, vote {votes.max():.2g}")
            for i, votes in zip(page.images, page.maps, strict=True)
        ])  # fmt: skip
    return made


def render(contents: Contents) -> str:
    """The page as HTML text."""
    loader = jinja2.FileSystemLoader(pathlib.Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("page.html").render(**vars(contents), words=EDITS, generator=GENERATOR)
