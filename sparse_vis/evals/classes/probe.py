"""Linear probes: the best learning rate of each feature, and its scores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from sparse_vis.evals.classes import logistic
from sparse_vis.evals.classes.logistic import Protocol, fit_all
from sparse_vis.evals.features import AnyArray, Split


@dataclass(frozen=True)
class Probe:
    """The classifier of the best learning rate.

    Attributes:
        weight, bias: (1, f, classes) and (1, classes). shift, scale: (f,), the standardisation.
        learning_rate: the best one. loss: its held-out cross-entropy.
        validation: held-out accuracy of every learning rate, in their order.
    """

    weight: Array
    bias: Array
    shift: np.ndarray
    scale: np.ndarray
    learning_rate: float
    loss: float
    validation: tuple[float, ...]


def fit_rates(
    train: Mapping[str, Float[AnyArray, "N _"]], y: Integer[AnyArray, " N"], classes: int, protocol: Protocol
) -> dict[str, Probe]:
    """For every feature, the classifier with the rate that is best on held-out rows; all train together.

    Ties in held-out accuracy go to the lowest loss.

    Args:
        train: name → (N, f) features. y: (N,) labels. classes: number of classes. protocol: Protocol.

    Raises:
        UserError: no rows left to hold out or to fit.
    """
    found, held_out = fit_all(train, y, classes, protocol)
    probes = {}
    for name, fitted in found.items():
        accuracy, _, loss = _evaluate(
            fitted.probes, Split(train[name], y), held_out, fitted.shift, fitted.scale
        )
        best = int(np.lexsort((loss, -accuracy))[0])
        probes[name] = Probe(
            **jax.tree.map(lambda p, best=best: p[best : best + 1], fitted.probes),
            shift=fitted.shift,
            scale=fitted.scale,
            learning_rate=protocol.learning_rates[best],
            loss=float(loss[best]),
            validation=tuple(float(a) for a in accuracy),
        )
    return probes


def scores(probe: Probe, split: Split) -> Float[np.ndarray, " 3"]:
    """Top-1 and top-5 accuracy and mean cross-entropy on all rows of a split."""
    weights = {"weight": probe.weight, "bias": probe.bias}
    return _evaluate(weights, split, np.arange(len(split.x)), probe.shift, probe.scale)[:, 0]


def _evaluate(
    probes: dict[str, Array],
    split: Split,
    rows: Integer[np.ndarray, " n"],
    shift: Float[np.ndarray, " f"],
    scale: Float[np.ndarray, " f"],
) -> np.ndarray:
    """Top-1, top-5 and mean cross-entropy of every probe on the given rows: (3, rates)."""
    x, y = np.asarray(split.x), np.asarray(split.y)
    blocks = [rows[i : i + logistic.BLOCK] for i in range(0, len(rows), logistic.BLOCK)]
    return sum(np.asarray(_sums(probes, (x[b] - shift) * scale, y[b]), np.float64) for b in blocks) / len(
        rows
    )


@jax.jit
def _sums(
    probes: dict[str, Array], x: Float[AnyArray, "B f"], y: Integer[AnyArray, " B"]
) -> Float[Array, "3 rates"]:
    logits = jax.vmap(logistic.logits, in_axes=(0, None))(probes, x)
    true = jnp.take_along_axis(logits, y[None, :, None], axis=2)
    # Ties go to the lower class, as in argmax and top_k.
    before = (logits > true) | ((logits == true) & (jnp.arange(logits.shape[2]) < y[:, None]))
    rank = before.sum(axis=2)
    loss = jax.nn.logsumexp(logits, axis=2) - true[..., 0]
    return jnp.stack([(rank < 1).sum(axis=1), (rank < 5).sum(axis=1), loss.sum(axis=1)])
