"""Prototype pages: the most used prototypes, each with the image regions of the highest votes for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from sparse_vis.report.images import Encoded
from sparse_vis.viz.pictures import prototype_votes, strongest


@dataclass(frozen=True)
class Page:
    """A prototype and the images that vote most for it.

    Attributes:
        number: index of the prototype. wins: number of tokens whose most likely prototype it is.
        images: indices of the m images, highest vote first. maps: (m, n) votes of their patches, 0 to 1.
    """

    number: int
    wins: int
    images: list[int]
    maps: Float[np.ndarray, "m n"]


def probabilities(
    found: Encoded, prototypes: Float[np.ndarray, "D K"], numbers: list[int], temperature: float
) -> Float[np.ndarray, "N P r"]:
    """The student's probability of P prototypes for every token, from the softmax over all K.

    Args:
        found: encoded images. prototypes: (D, K). numbers: P of the K indices. temperature: as in
            `encode_all`.
    """
    logits = np.einsum("ird,dp->ipr", found.embedding, prototypes[:, numbers]) / temperature
    return np.exp(logits - found.normaliser[:, None])


def make_pages(
    found: Encoded, prototypes: Float[np.ndarray, "D K"], temperature: float, *, pages: int, regions: int
) -> list[Page]:
    """Pages of the prototypes that are the most likely one of the most tokens.

    Args:
        found: encoded images. prototypes: (D, K) of the token head. temperature: as in `encode_all`.
        pages: most prototypes. regions: most images per prototype.
    """
    used, wins = np.unique(found.winner, return_counts=True)
    order = np.argsort(-wins, kind="stable")[:pages]
    p = probabilities(found, prototypes, used[order].tolist(), temperature)
    made = []
    for k, which in enumerate(order):
        votes = prototype_votes(found.L, p[:, k])
        best = strongest(votes, regions)
        made.append(Page(int(used[which]), int(wins[which]), best.tolist(), votes[best]))
    return made
