"""The linear probe of one feature: its best learning rate, and its scores."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from sparse_vis.evals import logistic
from sparse_vis.evals.features import AnyArray, Split
from sparse_vis.evals.logistic import Protocol, fit_all


@dataclass(frozen=True)
class Probe:
    """The classifier of the best learning rate.

    Attributes:
        weight, bias: (1, f, classes) and (1, classes). shift, scale: (f,), the standardisation.
        learning_rate: its rate. loss: its held-out cross-entropy.
        validation: held-out accuracy of every learning rate, in their order.
    """

    weight: Array
    bias: Array
    shift: np.ndarray
    scale: np.ndarray
    learning_rate: float
    loss: float
    validation: tuple[float, ...]


def fit_rates(train: Split, classes: int, protocol: Protocol) -> Probe:
    """One classifier per learning rate on part of the rows; keeps the one that is best on the rows held out.

    Of equal held-out accuracies the lowest loss wins.

    Args:
        train: labelled features. classes: number of classes. protocol: see there.

    Raises:
        UserError: no rows left to hold out or to fit.
    """
    probes, shift, scale, held_out = fit_all(train, classes, protocol)
    accuracy, _, loss = _evaluate(probes, train, held_out, shift, scale)
    best = int(np.lexsort((loss, -accuracy))[0])
    return Probe(
        **jax.tree.map(lambda p: p[best : best + 1], probes),
        shift=shift,
        scale=scale,
        learning_rate=protocol.learning_rates[best],
        loss=float(loss[best]),
        validation=tuple(float(a) for a in accuracy),
    )


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
    # As argmax and top_k do: of equal logits the lower class comes first.
    before = (logits > true) | ((logits == true) & (jnp.arange(logits.shape[2]) < y[:, None]))
    rank = before.sum(axis=2)
    loss = jax.nn.logsumexp(logits, axis=2) - true[..., 0]
    return jnp.stack([(rank < 1).sum(axis=1), (rank < 5).sum(axis=1), loss.sum(axis=1)])
