"""Weighted k-nearest-neighbour classification of frozen features."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Integer

from sparse_vis.errors import UserError
from sparse_vis.evals.features import AnyArray, check_labelled

KS = (10, 20, 100, 200)
# One block of similarities is TEST_BLOCK x TRAIN_BLOCK float32 (32 MB), whatever the size of the data set.
TEST_BLOCK = 512
TRAIN_BLOCK = 16_384


def knn_accuracy(
    train_features: Float[AnyArray, "N f"],
    train_labels: Integer[AnyArray, " n_labels"],
    test_features: Float[AnyArray, "M f"],
    test_labels: Integer[AnyArray, " m_labels"],
    *,
    classes: int,
    ks: Sequence[int] = KS,
    temperature: float = 0.07,
) -> dict[int, float]:
    """Top-1 accuracy of `knn_predict` for every k.

    Args:
        train_features: (N, f) float, not normalised.
        train_labels: (N,) int in 0 … classes−1.
        test_features: (M, f) float.
        test_labels: (M,) int in 0 … classes−1.
        classes: number of classes.
        ks: numbers of neighbours.
        temperature: T of the vote.

    Returns:
        k → accuracy in [0, 1].

    Raises:
        UserError: see `knn_predict`.
    """
    check_labelled("test", test_features, test_labels, classes)
    predicted = knn_predict(
        train_features, train_labels, test_features, classes=classes, ks=ks, temperature=temperature
    )
    return {k: float(np.mean(p == np.asarray(test_labels))) for k, p in predicted.items()}


def knn_predict(
    train_features: Float[AnyArray, "N f"],
    train_labels: Integer[AnyArray, " n_labels"],
    test_features: Float[AnyArray, "M f"],
    *,
    classes: int,
    ks: Sequence[int] = KS,
    temperature: float = 0.07,
) -> dict[int, Int[np.ndarray, " M"]]:
    """The class with the largest vote: the k most similar train rows vote with weight exp(cos/T).

    Among equal votes the lowest class wins, among equal similarities the earlier row counts as nearer.

    Args:
        train_features: (N, f) float, L2-normalised here.
        train_labels: (N,) int in 0 … classes−1.
        test_features: (M, f) float, L2-normalised here.
        classes: number of classes.
        ks: numbers of neighbours, each from 1 to N.
        temperature: T of the vote.

    Returns:
        k → (M,) int32 predicted classes.

    Raises:
        UserError: a k outside 1 … N, labels out of range, features that are not finite.

    Source: Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination".
    """
    check_labelled("train", train_features, train_labels, classes)
    for k in ks:
        if not 1 <= k <= len(train_features):
            raise UserError(
                f"kNN with k={k} is impossible with {len(train_features)} training samples; choose every k "
                f"between 1 and {len(train_features)}."
            )
    order = tuple(sorted(set(ks)))
    labels = jnp.asarray(train_labels, jnp.int32)
    train = _blocks(_normalise(train_features), TRAIN_BLOCK)
    votes = []
    for block in _blocks(_normalise(test_features), TEST_BLOCK):
        similarity, index = _nearest(train, jnp.asarray(block), len(train_features), order[-1])
        votes.append(np.asarray(_vote(similarity, labels[index], order, classes, temperature)))
    predicted = np.concatenate(votes, axis=1)[:, : len(test_features)]
    return {k: predicted[order.index(k)] for k in ks}


def _normalise(x: Float[AnyArray, "N f"]) -> Float[np.ndarray, "N f"]:
    x = np.asarray(x, np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _blocks(x: Float[np.ndarray, "N f"], size: int) -> Float[np.ndarray, "blocks size f"]:
    """Splits rows into equal blocks, zeros at the end."""
    size = min(size, len(x))
    count = -(-len(x) // size)
    return np.pad(x, ((0, count * size - len(x)), (0, 0))).reshape(count, size, -1)


@partial(jax.jit, static_argnums=3)
def _nearest(
    train: Float[Array, "blocks T f"], test: Float[Array, "M f"], count: Int[Array, ""], k: int
) -> tuple[Float[Array, "M k"], Int[Array, "M k"]]:
    """The k largest cosines of every test row and where they are, merging train block after train block."""
    block = train.shape[1]

    def merge(best, i):
        similarity = jnp.matmul(test, train[i].T, precision=jax.lax.Precision.HIGHEST)
        similarity = jnp.where(i * block + jnp.arange(block) < count, similarity, -jnp.inf)
        value, index = jax.lax.top_k(similarity, min(k, block))
        values = jnp.concatenate([best[0], value], axis=1)
        indices = jnp.concatenate([best[1], i * block + index], axis=1)
        value, position = jax.lax.top_k(values, k)
        return (value, jnp.take_along_axis(indices, position, axis=1)), None

    start = jnp.full((len(test), k), -jnp.inf), jnp.zeros((len(test), k), jnp.int32)
    return jax.lax.scan(merge, start, jnp.arange(len(train)))[0]


@partial(jax.jit, static_argnums=(2, 3))
def _vote(
    similarity: Float[Array, "M k"],
    labels: Int[Array, "M k"],
    ks: tuple[int, ...],
    classes: int,
    temperature: Float[Array, ""],
) -> Int[Array, "ks M"]:
    # Shifting by the nearest neighbour scales all votes of a row alike and keeps exp in range for any T.
    weight = jnp.exp((similarity - similarity[:, :1]) / temperature)
    rows = jnp.arange(len(similarity))[:, None]
    votes = jnp.zeros((len(similarity), classes))
    winners = []
    for low, high in zip((0, *ks), ks, strict=False):
        votes = votes.at[rows, labels[:, low:high]].add(weight[:, low:high])
        winners.append(jnp.argmax(votes, axis=1))
    return jnp.stack(winners).astype(jnp.int32)
