"""Retrieval: whether the nearest images, by cosine of one vector per image, are of the same class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sparse_vis.evals.classes.knn import nearest_blocks
from sparse_vis.evals.features import Split, check_labelled
from sparse_vis.runtime.errors import UserError

KS = (1, 5, 10)


def recall_at_k(query: Split, gallery: Split | None = None, *, ks: Sequence[int] = KS) -> dict[int, float]:
    """Share of the queries that have at least one image of their own class among the k nearest.

    Queries whose class is not in the gallery are left out. Ties between cosines go to the earlier row.

    Args:
        query: rows to look up, for example the mean of S; L2-normalised here.
        gallery: rows to find; None: leave-one-out, every query against all others.
        ks: numbers of neighbours.

    Returns:
        k → recall in [0, 1]; nan if no query has a right answer.

    Raises:
        UserError: a k outside 1 … number of rows to find, labels below 0, features that are not finite.

    Source: Oh Song et al. 2016, "Deep Metric Learning via Lifted Structured Feature Embedding".
    """
    found = query if gallery is None else gallery
    for name, split in (("query", query), ("gallery", found)):
        check_labelled(name, split.x, split.y, int(np.max(split.y, initial=0)) + 1)
    alone = gallery is None
    available = len(found.x) - alone
    if not ks or min(ks) < 1 or max(ks) > available:
        raise UserError(
            f"recall@k needs every k between 1 and {available}, the rows to find; not {tuple(ks)}."
        )
    index = _nearest(query, found, max(ks), alone)
    labels, wanted = np.asarray(found.y), np.asarray(query.y)
    hits = np.maximum.accumulate(labels[index] == wanted[:, None], axis=1)
    present, counts = np.unique(labels, return_counts=True)
    # The query itself does not count: leave-one-out needs a second image of the class.
    answerable = np.isin(wanted, present[counts > alone])
    return {k: float(hits[answerable, k - 1].mean()) if answerable.any() else float("nan") for k in ks}


def _nearest(query: Split, gallery: Split, k: int, alone: bool) -> np.ndarray:
    """Gallery rows (M, k) of largest cosine, nearest first, without the query itself where `alone`."""
    blocks = [np.asarray(index) for _, index in nearest_blocks(gallery.x, query.x, k + alone)]
    index = np.concatenate(blocks)[: len(query.x)]
    if not alone:
        return index
    # More than k other rows may equal the query; then it is not among the k + 1, and the last one is dropped.
    itself = index == np.arange(len(index))[:, None]
    itself[~itself.any(axis=1), -1] = True
    return index[~itself].reshape(len(index), k)
