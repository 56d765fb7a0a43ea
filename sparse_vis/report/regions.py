"""The most used prototypes, each with the image regions of the highest votes for it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from sparse_vis.report.gallery import SMALL, data_uri
from sparse_vis.report.images import Encoded
from sparse_vis.viz.pictures import lay_over, map_overlay, prototype_votes, strongest


class Page(NamedTuple):
    """A prototype and the images that vote most for it."""

    number: int
    wins: int  # tokens whose most likely prototype it is
    images: list[int]  # indices, highest vote first
    maps: Float[np.ndarray, "m n"]  # votes of their patches, 0 to 1

    def pictures(
        self, images: UInt8[np.ndarray, "N H W 3"], names: list[str], grid: tuple[int, int], patch: int
    ) -> list[tuple[str, str]]:
        """(data URI, label) of each image, darkened where the vote is low; from those of all voters."""
        whole = images[:, : grid[0] * patch, : grid[1] * patch]
        return [
            (data_uri(lay_over(whole[i], map_overlay(votes.reshape(grid))), SMALL),
             f"{names[i]}, vote {votes.max():.2g}")
            for i, votes in zip(self.images, self.maps, strict=True)
        ]  # fmt: skip


def make_pages(
    found: Encoded, prototypes: Float[np.ndarray, "D K"], temperature: float, *, pages: int, regions: int
) -> list[Page]:
    """Pages of the prototypes that are the most likely one of the most tokens.

    Args:
        prototypes: of the token head. temperature: as in `encode_all`.
        pages: most prototypes. regions: most images per prototype.
    """
    used, wins = np.unique(found.winner, return_counts=True)
    order, made = np.argsort(-wins, kind="stable")[:pages], []
    logits = np.einsum("ird,dp->ipr", found.embedding, prototypes[:, used[order]]) / temperature
    p = np.exp(logits - found.normaliser[:, None])  # the student's, from the softmax over all K
    for k, which in enumerate(order):
        votes = prototype_votes(found.L, p[:, k])
        best = strongest(votes, regions)
        made.append(Page(int(used[which]), int(wins[which]), best.tolist(), votes[best]))
    return made
