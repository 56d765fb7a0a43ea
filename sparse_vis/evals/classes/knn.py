"""Classification and retrieval by the nearest images: largest cosines of one vector per image."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from sparse_vis.evals.columns import TOKEN_MEANS
from sparse_vis.evals.dataset import Data, without_unlabelled
from sparse_vis.evals.features import POOLED, AnyArray, Split, check_labelled
from sparse_vis.evals.task import Bench, Reducer, Result, Task
from sparse_vis.runtime.errors import UserError

KS, RECALL_KS = (10, 20, 100, 200), (1, 5, 10)
TEMPERATURE = 0.07
# One block of similarities is QUERY_BLOCK x GALLERY_BLOCK float32 (32 MB), for any size of the data set.
QUERY_BLOCK, GALLERY_BLOCK = 512, 16_384


def knn_accuracy(
    train: Split, test: Split, *, classes: int, ks: Sequence[int] = KS, temperature: float = TEMPERATURE
) -> dict[int, float]:
    """k → top-1 accuracy of `knn_predict`, in [0, 1]."""
    check_labelled("test", test.x, test.y, classes)
    predicted = knn_predict(train, test.x, classes=classes, ks=ks, temperature=temperature)
    return {k: float(np.mean(p == np.asarray(test.y))) for k, p in predicted.items()}


def knn_predict(
    train: Split,
    test_x: Float[AnyArray, "M f"],
    *,
    classes: int,
    ks: Sequence[int] = KS,
    temperature: float = TEMPERATURE,
) -> dict[int, Int[np.ndarray, " M"]]:
    """k → the class with the largest vote: the k most similar train rows vote with weight exp(cos/T).

    Ties between votes go to the lowest class, ties between similarities to the earlier row.

    Args:
        train: rows that vote; these and `test_x` are L2-normalised here. temperature: T.

    Raises:
        UserError: a k outside 1 … N, labels out of range, features that are not finite.

    Source: Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination".
    """
    check_labelled("train", train.x, train.y, classes)
    for k in ks:
        if not 1 <= k <= len(train.x):
            raise UserError(
                f"kNN with k={k} is impossible with {len(train.x)} training samples; choose every k "
                f"between 1 and {len(train.x)}."
            )
    order = tuple(sorted(set(ks)))
    labels = jnp.asarray(train.y, jnp.int32)
    votes = [
        np.asarray(_vote(similarity, labels[index], order, classes, temperature))
        for similarity, index in _nearest_blocks(train.x, test_x, order[-1])
    ]
    predicted = np.concatenate(votes, axis=1)[:, : len(test_x)]
    return {k: predicted[order.index(k)] for k in ks}


def recall_at_k(
    query: Split, gallery: Split | None = None, *, ks: Sequence[int] = RECALL_KS
) -> dict[int, float]:
    """k → share of the queries that have at least one image of their own class among the k nearest.

    Queries whose class is not in the gallery are left out; nan if none is left. Ties between cosines go to
    the earlier row.

    Args:
        query: rows to look up, L2-normalised here as those of the gallery.
        gallery: rows to find; None: leave-one-out, every query against all others.

    Raises:
        UserError: a k outside 1 … number of rows to find, labels below 0, features that are not finite.

    Source: Oh Song et al. 2016, "Deep Metric Learning via Lifted Structured Feature Embedding".
    """
    alone, found = gallery is None, query if gallery is None else gallery
    for name, split in (("query", query), ("gallery", found)):
        check_labelled(name, split.x, split.y, int(np.max(split.y, initial=0)) + 1)
    available = len(found.x) - alone
    if not ks or min(ks) < 1 or max(ks) > available:
        raise UserError(
            f"recall@k needs every k between 1 and {available}, the number of other images; got {tuple(ks)}."
        )
    index = _nearest_others(query, found, max(ks), alone)
    labels, wanted = np.asarray(found.y), np.asarray(query.y)
    hits = np.maximum.accumulate(labels[index] == wanted[:, None], axis=1)
    present, counts = np.unique(labels, return_counts=True)
    # The query itself does not count: leave-one-out needs a second image of the class.
    answerable = np.isin(wanted, present[counts > alone])
    return {k: float(hits[answerable, k - 1].mean()) if answerable.any() else float("nan") for k in ks}


def _nearest_others(query: Split, gallery: Split, k: int, alone: bool) -> Int[np.ndarray, "M k"]:
    """Gallery rows of largest cosine, nearest first, without the query itself where `alone`."""
    blocks = [np.asarray(index) for _, index in _nearest_blocks(gallery.x, query.x, k + alone)]
    index = np.concatenate(blocks)[: len(query.x)]
    if not alone:
        return index
    # More than k other rows may equal the query; then it is not among the k + 1, and the last one is dropped.
    itself = index == np.arange(len(index))[:, None]
    itself[~itself.any(axis=1), -1] = True
    return index[~itself].reshape(len(index), k)


def _nearest_blocks(
    gallery: Float[AnyArray, "N f"], queries: Float[AnyArray, "M f"], k: int
) -> Iterator[tuple[Float[Array, "B k"], Int[Array, "B k"]]]:
    """Yield the k ≤ N largest cosines of every query, descending, and their gallery rows, block by block.

    Memory beyond the features is bounded by one block of similarities. The last block is padded beyond row M.
    """
    blocks = _blocks(_normalise(gallery), GALLERY_BLOCK)
    for block in _blocks(_normalise(queries), QUERY_BLOCK):
        yield _nearest(blocks, jnp.asarray(block), len(gallery), k)


def _normalise(x: Float[AnyArray, "N f"]) -> Float[np.ndarray, "N f"]:
    x = np.asarray(x, np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _blocks(x: Float[np.ndarray, "N f"], size: int) -> Float[np.ndarray, "blocks size f"]:
    """Split rows into equal blocks, the last one padded with zeros."""
    size = min(size, len(x))
    count = -(-len(x) // size)
    return np.pad(x, ((0, count * size - len(x)), (0, 0))).reshape(count, size, -1)


@partial(jax.jit, static_argnums=3)
def _nearest(
    train: Float[Array, "blocks T f"], test: Float[Array, "M f"], count: Int[Array, ""], k: int
) -> tuple[Float[Array, "M k"], Int[Array, "M k"]]:
    """The k largest cosines of every test row and their indices, merged over the blocks of train rows."""
    block = train.shape[1]

    def merge(best, i):
        similarity = jnp.matmul(test, train[i].T, precision=jax.lax.Precision.HIGHEST)
        similarity = jnp.where(i * block + jnp.arange(block) < count, similarity, -jnp.inf)
        value, index = jax.lax.top_k(similarity, min(k, block))
        values = jnp.concatenate([best[0], value], axis=1)
        indices = jnp.concatenate([best[1], i * block + index], axis=1)
        value, position = jax.lax.top_k(values, k)
        return (value, jnp.take_along_axis(indices, position, axis=1)), None

    start = jnp.full((len(test), k), -jnp.inf, jnp.float32), jnp.zeros((len(test), k), jnp.int32)
    return jax.lax.scan(merge, start, jnp.arange(len(train), dtype=jnp.int32))[0]


@partial(jax.jit, static_argnums=(2, 3))
def _vote(
    similarity: Float[Array, "M k"],
    labels: Int[Array, "M k"],
    ks: tuple[int, ...],
    classes: int,
    temperature: Float[Array, ""],
) -> Int[Array, "ks M"]:
    # Subtracting the largest similarity scales all votes of a row alike and keeps exp in range for any T.
    weight = jnp.exp((similarity - similarity[:, :1]) / temperature)
    rows = jnp.arange(len(similarity))[:, None]
    votes = jnp.zeros((len(similarity), classes), jnp.float32)
    winners = []
    for low, high in zip((0, *ks), ks, strict=False):
        votes = votes.at[rows, labels[:, low:high]].add(weight[:, low:high])
        winners.append(jnp.argmax(votes, axis=1))
    return jnp.stack(winners).astype(jnp.int32)


def pooled_splits(bench: Bench) -> dict[str, tuple[Split, Split]]:
    """Pooled feature → its labelled train and test rows."""
    train, test = (bench.columns(part) for part in bench.data.labelled)
    names = [name for name in POOLED.values() if name in train]
    if not names:
        return {}
    (x, y), (test_x, test_y) = (without_unlabelled(columns, names) for columns in (train, test))
    return {name: (Split(x[name], y), Split(test_x[name], test_y)) for name in names}


def _knn(bench: Bench, config: ConfigDict) -> Result:
    metrics, few = {}, {}
    for name, (train, test) in pooled_splits(bench).items():
        ks = tuple(k for k in KS if k <= len(train.x))
        found = knn_accuracy(train, test, classes=bench.data.classes, ks=ks) if ks else {}
        metrics[name] = {f"k{k}": accuracy for k, accuracy in found.items()}
        few = {f"k{k}": f"there are only {len(train.x)} training images" for k in KS if k not in ks}
    return Result(metrics, few)


def _retrieval(bench: Bench, config: ConfigDict) -> Result:
    metrics, few = {}, {}
    for name, (_, test) in pooled_splits(bench).items():
        ks = tuple(k for k in RECALL_KS if k < len(test.x))
        metrics[name] = {f"recall{k}": share for k, share in recall_at_k(test, ks=ks).items()}
        few = {f"recall{k}": f"there are only {len(test.x)} test images" for k in RECALL_KS if k not in ks}
    if any(math.isnan(share) for row in metrics.values() for share in row.values()):
        return Result({}, few | {"retrieval": "no two test images are of one class"})
    return Result(metrics, few)


def _reducers(data: Data) -> dict[str, tuple[Reducer, ...]]:
    return dict.fromkeys(data.labelled, TOKEN_MEANS)


KNN = Task(
    _knn, ("label",), tuple(POOLED), _reducers,
    lambda config: {"k": KS, "temperature": TEMPERATURE, "feature": "L2-normalised"}, least=(min(KS), 1),
)  # fmt: skip
RETRIEVAL = Task(
    _retrieval, ("label",), tuple(POOLED), _reducers,
    lambda config: {"k": RECALL_KS, "gallery": "all other test images"}, least=(1, 2),
)  # fmt: skip
