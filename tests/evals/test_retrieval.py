"""recall@k against a plain numpy loop and hand-made cases."""

import numpy as np
import pytest

from sparse_vis.evals.classes import knn
from sparse_vis.evals.classes.knn import recall_at_k
from sparse_vis.evals.features import Split
from sparse_vis.runtime.errors import UserError

pytestmark = pytest.mark.fast


def labelled(seed, count=70, classes=6, width=5):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, count)
    centres = np.random.default_rng(99).normal(size=(classes, width))
    x = (centres[y] + rng.normal(size=(count, width))) * rng.uniform(0.1, 9, (count, 1))
    return Split(x.astype(np.float32), y)


def loop(query, gallery, k, alone):
    """The definition, one query at a time, in float64."""
    hits = []
    for i, row in enumerate(query.x.astype(np.float64)):
        rows = [j for j in range(len(gallery.x)) if not (alone and i == j)]
        if query.y[i] not in gallery.y[rows]:
            continue
        cosine = {j: row @ gallery.x[j] / np.linalg.norm(row) / np.linalg.norm(gallery.x[j]) for j in rows}
        nearest = sorted(rows, key=lambda j: -cosine[j])[:k]
        hits.append(query.y[i] in gallery.y[nearest])
    return np.mean(hits)


@pytest.mark.parametrize("alone", [False, True])
def test_recall_equals_the_loop_in_any_blocks(monkeypatch, alone):
    query, gallery = labelled(0), labelled(1, 55)
    query.y[7] = 6  # a class of one image: no right answer in either case
    found = query if alone else gallery
    expected = {k: loop(query, found, k, alone) for k in (1, 4, 20)}
    assert 0.2 < expected[1] < expected[4] < 1
    for blocks in ((512, 16_384), (16, 13)):
        monkeypatch.setattr(knn, "QUERY_BLOCK", blocks[0])
        monkeypatch.setattr(knn, "GALLERY_BLOCK", blocks[1])
        assert recall_at_k(query, None if alone else gallery, ks=(20, 1, 4)) == pytest.approx(expected)


def test_leave_one_out_among_copies():
    # Four equal rows: row 0 finds row 1, the others find row 0; row 1 has no second image of its class.
    same = Split(np.ones((4, 2), np.float32), np.array([1, 0, 1, 1]))
    assert recall_at_k(same, ks=(1, 2)) == {1: pytest.approx(2 / 3), 2: 1.0}
    assert np.isnan(recall_at_k(Split(same.x, np.arange(4)), ks=(1,))[1])


def test_bad_input_is_named():
    query = labelled(2, 10)
    with pytest.raises(UserError, match=r"between 1 and 9.*\(10,\)"):
        recall_at_k(query, ks=(10,))
    with pytest.raises(UserError, match="query set has 10 features but 9 labels"):
        recall_at_k(Split(query.x, query.y[1:]))
    with pytest.raises(UserError, match="gallery features contain NaN"):
        recall_at_k(query, Split(query.x * np.nan, query.y))
