"""Weighted k-nearest-neighbour classification of frozen features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sparse_vis.evals.features import AnyArray, Split, check_labelled
from sparse_vis.runtime.errors import UserError

KS = (10, 20, 100, 200)
# One block of similarities is QUERY_BLOCK x GALLERY_BLOCK float32 (32 MB), for any size of the data set.
QUERY_BLOCK = 512
GALLERY_BLOCK = 16_384


def knn_accuracy(
    train: Split, test: Split, *, classes: int, ks: Sequence[int] = KS, temperature: float = 0.07
) -> dict[int, float]:
    """Top-1 accuracy of `knn_predict` for every k.

    Args:
        train: rows that vote. test: rows to classify. Both are L2-normalised here.
        classes: number of classes.
        ks: numbers of neighbours.
        temperature: T of the vote.

    Returns:
        k → accuracy in [0, 1].

    Raises:
        UserError: as `knn_predict`.
    """
    check_labelled("test", test.x, test.y, classes)
    predicted = knn_predict(train, test.x, classes=classes, ks=ks, temperature=temperature)
    return {k: float(np.mean(p == np.asarray(test.y))) for k, p in predicted.items()}


def knn_predict(
    train: Split,
    test_x: Float[AnyArray, "M f"],
    *,
    classes: int,
    ks: Sequence[int] = KS,
    temperature: float = 0.07,
) -> dict[int, Int[np.ndarray, " M"]]:
    """The class with the largest vote: the k most similar train rows vote with weight exp(cos/T).

    Ties between votes go to the lowest class, ties between similarities to the earlier row.

    Args:
        train: rows that vote, L2-normalised here.
        test_x: (M, f) float, L2-normalised here.
        classes: number of classes.
        ks: numbers of neighbours, each from 1 to N.
        temperature: T of the vote.

    Returns:
        k → (M,) int32 predicted classes.

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
        for similarity, index in nearest_blocks(train.x, test_x, order[-1])
    ]
    predicted = np.concatenate(votes, axis=1)[:, : len(test_x)]
    return {k: predicted[order.index(k)] for k in ks}


def nearest_blocks(
    gallery: Float[AnyArray, "N f"], queries: Float[AnyArray, "M f"], k: int
) -> Iterator[tuple[Float[Array, "B k"], Int[Array, "B k"]]]:
    """The k gallery rows of largest cosine for every query, block by block.

    For any N and M, memory beyond the features is bounded by one block of similarities.

    Args:
        gallery: (N, f) float, N ≥ k, L2-normalised here.
        queries: (M, f) float, L2-normalised here.
        k: number of neighbours.

    Yields:
        Cosines in descending order, and indices of their gallery rows; the last block is padded beyond row M.
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
