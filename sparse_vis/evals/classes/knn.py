"""Classification and retrieval by the nearest images: those with the largest cosines of their vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from sparse_vis.evals.columns import TOKEN_MEANS
from sparse_vis.evals.dataset import without_unlabelled
from sparse_vis.evals.features import POOLED, AnyArray, Split, check_labelled
from sparse_vis.evals.task import Bench, Result, Task
from sparse_vis.models.classifier import LEAST
from sparse_vis.runtime.batches import Devices
from sparse_vis.runtime.errors import UserError

KS, RECALL_KS = (10, 20, 100, 200), (1, 5, 10)
TEMPERATURE = 0.07
# One block of similarities is QUERY_BLOCK x GALLERY_BLOCK float32 (32 MB), for any size of the data set.
QUERY_BLOCK, GALLERY_BLOCK = 512, 16_384


def knn_accuracy(train: Split, test: Split, *, classes: int, ks: Sequence[int] = KS) -> dict[int, float]:
    """k → top-1 accuracy of `knn_predict`, in [0, 1]."""
    check_labelled("test", test.x, test.y, classes)
    predicted = knn_predict(train, test.x, classes=classes, ks=ks)
    return {k: float(np.mean(p == np.asarray(test.y))) for k, p in predicted.items()}


def knn_predict(
    train: Split, test_x: AnyArray, *, classes: int, ks: Sequence[int] = KS, temperature: float = TEMPERATURE
) -> dict[int, Int[np.ndarray, " M"]]:
    """k → the class of largest vote; the k train rows of largest cosine vote with weight exp(cos / T).

    T is the temperature. Ties between votes go to the lowest class, ties between cosines to the earlier row.

    Raises:
        UserError: a k is outside 1 … N, labels are out of range, or features are not finite.

    Source: Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination".
    """
    check_labelled("train", train.x, train.y, classes)
    for k in ks:
        if not 1 <= k <= len(train.x):
            what = f"kNN with k={k} is impossible with {len(train.x)} training samples"
            raise UserError(f"{what}; choose every k between 1 and {len(train.x)}.")
    order, labels = tuple(sorted(set(ks))), np.asarray(train.y, np.int32)
    cosines, index = _nearest(train.x, test_x, order[-1])
    blocks = (slice(start, start + QUERY_BLOCK) for start in range(0, len(index), QUERY_BLOCK))
    votes = [np.asarray(_vote(cosines[b], labels[index[b]], order, classes, temperature)) for b in blocks]
    predicted = np.concatenate(votes, axis=1)
    return {k: predicted[order.index(k)] for k in ks}


def recall_at_k(
    query: Split, gallery: Split | None = None, *, ks: Sequence[int] = RECALL_KS
) -> dict[int, float]:
    """k → share of the queries that have a row of their own class among the k gallery rows of largest cosine.

    Without a gallery, the gallery of each query is all other queries (leave-one-out). Queries whose class is
    not in the gallery are left out; nan if none is left. Ties between cosines go to the earlier row.

    Raises:
        UserError: a k is outside 1 … number of gallery rows, labels are negative, or features are not finite.

    Source: Oh Song et al. 2016, "Deep Metric Learning via Lifted Structured Feature Embedding".
    """
    alone, found = gallery is None, query if gallery is None else gallery
    for name, split in (("query", query), ("gallery", found)):
        check_labelled(name, split.x, split.y, int(np.max(split.y, initial=0)) + 1)
    available = len(found.x) - alone
    if not ks or min(ks) < 1 or max(ks) > available:
        what = f"recall@k needs every k between 1 and {available}, the number of other images"
        raise UserError(f"{what}; got {tuple(ks)}.")
    index = _nearest(found.x, query.x, max(ks) + alone)[1]
    if alone:
        # If more than k rows equal the query, it may not be among the k + 1; then the last one is dropped.
        itself = index == np.arange(len(index))[:, None]
        itself[~itself.any(axis=1), -1] = True
        index = index[~itself].reshape(len(index), max(ks))
    labels, wanted = np.asarray(found.y), np.asarray(query.y)
    hits = np.maximum.accumulate(labels[index] == wanted[:, None], axis=1)
    present, counts = np.unique(labels, return_counts=True)
    # With leave-one-out, the class needs a second image, as the query itself does not count.
    answerable = np.isin(wanted, present[counts > alone])
    return {k: float(hits[answerable, k - 1].mean()) if answerable.any() else float("nan") for k in ks}


def _nearest(
    gallery: Float[AnyArray, "N f"], queries: Float[AnyArray, "M f"], k: int
) -> tuple[Float[np.ndarray, "M k"], Int[np.ndarray, "M k"]]:
    """The k ≤ N largest cosines of every query, descending, and their gallery rows.

    Only blocks are copied, so that arrays may be memory-mapped. Every gallery row goes to each device once;
    the queries of a block are split over the devices.
    """
    devices = Devices()
    best = np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), np.int32)
    for first in range(0, len(gallery), GALLERY_BLOCK):
        rows = devices.everywhere(unit(gallery[first : first + GALLERY_BLOCK]))
        found = []
        for start in range(0, len(queries), QUERY_BLOCK):
            block = slice(start, start + QUERY_BLOCK)
            known, split = (best[0][block], best[1][block]), devices.split(unit(queries[block]))
            # Reading each result at once keeps one block in flight; many in flight can hang JAX on few cores.
            found.append(jax.device_get(_merge(known, split, rows, np.int32(first), k)))
        best = tuple(np.concatenate(part) for part in zip(*found, strict=True))
    return best


def unit(rows: Float[AnyArray, "N f"]) -> Float[np.ndarray, "N f"]:
    """Rows in float32, divided by their length; rows of zeros stay as they are."""
    rows = np.asarray(rows, np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), LEAST)


@partial(jax.jit, static_argnums=4)
def _merge(
    best: tuple[Array, Array], queries: Float[Array, "B f"], rows: Float[AnyArray, "T f"], first, k: int
) -> tuple[Array, Array]:
    """The k largest of the known cosines and those with gallery rows from `first` on, and their indices."""
    cosines = jnp.matmul(queries, rows.T, precision=jax.lax.Precision.HIGHEST)
    value, index = jax.lax.top_k(cosines, min(k, len(rows)))
    values = jnp.concatenate([best[0], value], axis=1)
    indices = jnp.concatenate([best[1], first + index], axis=1)
    value, position = jax.lax.top_k(values, min(k, values.shape[1]))
    return value, jnp.take_along_axis(indices, position, axis=1)


@partial(jax.jit, static_argnums=(2, 3))
def _vote(
    cosines: Float[Array, "M k"], labels: Int[Array, "M k"], ks: tuple[int, ...], classes: int, temperature
) -> Int[Array, "ks M"]:
    # Subtracting the largest cosine scales all votes of a row alike and keeps exp in range for any T.
    weight = jnp.exp((cosines - cosines[:, :1]) / temperature)
    rows = jnp.arange(len(cosines))[:, None]
    votes = jnp.zeros((len(cosines), classes), jnp.float32)
    winners = []
    for low, high in zip((0, *ks), ks, strict=False):
        votes = votes.at[rows, labels[:, low:high]].add(weight[:, low:high])
        winners.append(jnp.argmax(votes, axis=1))
    return jnp.stack(winners).astype(jnp.int32)


def pooled_splits(bench: Bench) -> dict[str, tuple[Split, Split]]:
    """Name of a pooled feature → its labelled train and test rows."""
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


KNN = Task(
    _knn, ("label",), tuple(POOLED), lambda data: dict.fromkeys(data.labelled, TOKEN_MEANS),
    lambda config: {"k": KS, "temperature": TEMPERATURE, "feature": "L2-normalised"}, least=(min(KS), 1),
)  # fmt: skip
RETRIEVAL = Task(
    _retrieval, KNN.needs, KNN.reads, KNN.reducers,
    lambda config: {"k": RECALL_KS, "gallery": "all other test images"}, least=(1, 2),
)  # fmt: skip
