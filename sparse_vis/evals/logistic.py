"""Logistic regression with AdamW, one classifier per learning rate under one vmap."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from sparse_vis.errors import UserError
from sparse_vis.evals.features import AnyArray, Split

LEARNING_RATES = tuple(float(rate) for rate in np.logspace(-5, -1, 13))
# Rows handled at once outside training: bounds the float64 statistics and the logits of all rates.
BLOCK = 2048


@dataclass(frozen=True)
class Protocol:
    """How probes are trained: AdamW, cosine to zero, from zero weights, on standardised features.

    Attributes:
        learning_rates: peak rates, one classifier each.
        validation_fraction: share of train that is held out to choose.
        steps: optimizer steps.
        batch_size: rows per step (all fitted rows where there are fewer).
        weight_decay: decoupled, as in AdamW.
        seed: of the held-out rows and of the order of the others.
    """

    learning_rates: tuple[float, ...] = LEARNING_RATES
    validation_fraction: float = 0.1
    steps: int = 500
    batch_size: int = 256
    weight_decay: float = 1e-4
    seed: int = 0


def fit_all(
    train: Split, classes: int, protocol: Protocol
) -> tuple[dict[str, Array], np.ndarray, np.ndarray, np.ndarray]:
    """One classifier per learning rate, on the rows that are not held out.

    Args:
        train: y is (N,) int for softmax cross-entropy, or (N, classes) bool for one sigmoid per class.
        classes: number of classes. protocol: see there.

    Returns:
        weight (rates, f, classes) and bias (rates, classes); shift and scale (f,); the rows held out.

    Raises:
        UserError: no rows left to hold out or to fit.
    """
    rng = np.random.default_rng(protocol.seed)
    held_out, fitted = _split(len(train.x), protocol.validation_fraction, rng)
    batches = _batches(fitted, protocol.steps, protocol.batch_size, rng)
    shift, scale = _moments(train.x, fitted)
    x, y = jnp.asarray(train.x, jnp.float32), jnp.asarray(train.y, jnp.int32)
    rates = jnp.asarray(protocol.learning_rates)
    return _fit(x, y, batches, shift, scale, rates, protocol.weight_decay, classes), shift, scale, held_out


def _split(count: int, fraction: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    held_out = round(fraction * count)
    if not 0 < held_out < count:
        raise UserError(
            f"validation_fraction={fraction} of {count} training samples holds out {held_out}; give more "
            "samples or another fraction."
        )
    order = rng.permutation(count).astype(np.int32)
    return order[:held_out], order[held_out:]


def _batches(
    rows: Int[np.ndarray, " N"], steps: int, batch_size: int, rng: np.random.Generator
) -> Int[np.ndarray, "steps batch"]:
    batch_size = min(batch_size, len(rows))
    epochs = -(-steps * batch_size // len(rows))
    order = np.concatenate([rng.permutation(rows) for _ in range(epochs)])
    return order[: steps * batch_size].reshape(steps, batch_size)


def _moments(
    x: Float[AnyArray, "N f"], rows: Int[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " f"], Float[np.ndarray, " f"]]:
    """Mean and inverse deviation of the given rows; 0 for a feature that never varies, which drops it."""
    x = np.asarray(x)
    blocks = [rows[i : i + BLOCK] for i in range(0, len(rows), BLOCK)]
    mean = sum(x[b].sum(axis=0, dtype=np.float64) for b in blocks) / len(rows)
    deviation = np.sqrt(sum(np.square(x[b] - mean).sum(axis=0) for b in blocks) / len(rows))
    varies = deviation > 1e-6 * deviation.max()
    scale = np.where(varies, 1 / np.where(varies, deviation, 1), 0)
    return mean.astype(np.float32), scale.astype(np.float32)


def logits(probe: dict[str, Array], x: Float[Array, "B f"]) -> Float[Array, "B classes"]:
    """One classifier's logits of standardised rows: weight (f, classes), bias (classes,)."""
    return jnp.matmul(x, probe["weight"], precision=jax.lax.Precision.HIGHEST) + probe["bias"]


@partial(jax.jit, static_argnames="classes")
def _fit(
    x: Float[Array, "N f"],
    y: Int[Array, N * classes],
    batches: Int[AnyArray, "steps batch"],
    shift: Float[AnyArray, " f"],
    scale: Float[AnyArray, " f"],
    learning_rates: Float[Array, " rates"],
    weight_decay: Float[Array, ""],
    classes: int,
) -> dict[str, Array]:
    """One classifier per learning rate: weight (rates, f, classes) and bias (rates, classes)."""
    steps = len(batches)

    def loss(probe, rows):
        out = logits(probe, (x[rows] - shift) * scale)
        if y.ndim == 2:
            return optax.sigmoid_binary_cross_entropy(out, y[rows]).mean()
        return optax.softmax_cross_entropy_with_integer_labels(out, y[rows]).mean()

    def fit(rate):
        optimizer = optax.adamw(
            lambda step: rate * 0.5 * (1 + jnp.cos(jnp.pi * step / steps)), weight_decay=weight_decay
        )
        probe = {"weight": jnp.zeros((x.shape[1], classes)), "bias": jnp.zeros(classes)}

        def update(state, rows):
            probe, optimizer_state = state
            change, optimizer_state = optimizer.update(jax.grad(loss)(probe, rows), optimizer_state, probe)
            return (optax.apply_updates(probe, change), optimizer_state), None

        return jax.lax.scan(update, (probe, optimizer.init(probe)), batches)[0][0]

    return jax.vmap(fit)(learning_rates)
