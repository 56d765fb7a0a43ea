"""Logistic regression with AdamW: one classifier per feature and learning rate, all under one vmap."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Integer

from sparse_vis.evals.features import AnyArray
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.progress import Progress

LEARNING_RATES = tuple(float(rate) for rate in np.logspace(-5, -1, 13))
# Rows per block outside of training: bounds memory of float64 statistics and of the logits of all rates.
BLOCK = 2048
SHOWN_STEPS = 50  # steps between updates of the progress line
Features = Mapping[str, Float[AnyArray, "_ _"]]  # name → (N, f), of any widths f


@dataclass(frozen=True)
class SweepProtocol:
    """How probes are trained: AdamW, cosine decay to zero, zero initial weights, standardised features.

    Attributes:
        learning_rates: initial rates; every feature gets one classifier per rate.
        validation_fraction: share of train that is held out for choosing.
        steps: optimizer steps.
        batch_size: rows per step (all fitted rows if there are fewer).
        weight_decay: decoupled, as in AdamW.
        seed: of the choice of held-out rows and of the order of the others.
    """

    learning_rates: tuple[float, ...] = LEARNING_RATES
    validation_fraction: float = 0.1
    steps: int = 500
    batch_size: int = 256
    weight_decay: float = 1e-4
    seed: int = 0

    @property
    def least_rows(self) -> int:
        """Smallest number of train rows that leaves rows to hold out and rows to fit."""
        return next(n for n in itertools.count(2) if 0 < round(self.validation_fraction * n) < n)


@dataclass(frozen=True)
class Probes:
    """The classifiers of one feature, one per learning rate.

    Attributes:
        weight, bias: (rates, f, classes) and (rates, classes). shift, scale: (f,), the standardisation.
    """

    weight: Array
    bias: Array
    shift: np.ndarray
    scale: np.ndarray

    def only(self, rate: int) -> Probes:
        """The classifier of one rate, given by its number."""
        chosen = slice(rate, rate + 1)
        return dataclasses.replace(self, weight=self.weight[chosen], bias=self.bias[chosen])


def fit_all(
    train: Features, y: AnyArray, classes: int, protocol: SweepProtocol
) -> tuple[dict[str, Probes], np.ndarray]:
    """Train one classifier per feature and learning rate, all together, on the rows that are not held out.

    Args:
        y: (N,) int for softmax cross-entropy, or (N, classes) bool for one sigmoid per class.

    Returns:
        Name → its classifiers; indices of the held-out rows, the same for all.

    Raises:
        UserError: no rows left to hold out or to fit.
    """
    rng = np.random.default_rng(protocol.seed)
    held_out, fitted = _split(len(y), protocol.validation_fraction, rng)
    batches = _batches(fitted, protocol.steps, protocol.batch_size, rng)
    moments = [_moments(x, fitted) for x in train.values()]
    xs = tuple(jnp.asarray(x, jnp.float32) for x in train.values())
    rates = jnp.asarray(protocol.learning_rates, jnp.float32)
    y = jnp.asarray(y, jnp.int32)
    weight, bias = _fit(xs, y, batches, moments, rates, protocol.weight_decay, classes)
    found = {n: Probes(weight[i, :, : xs[i].shape[1]], bias[i], *moments[i]) for i, n in enumerate(train)}
    return found, held_out


def scores(
    probes: Probes, x: AnyArray, y: AnyArray, rows: Integer[np.ndarray, " n"]
) -> Float[np.ndarray, "3 rates"]:
    """Top-1 and top-5 accuracy and mean cross-entropy of every classifier on the given rows."""
    x, y, weights = np.asarray(x), np.asarray(y), {"weight": probes.weight, "bias": probes.bias}
    blocks = [rows[i : i + BLOCK] for i in range(0, len(rows), BLOCK)]
    sums = (_sums(weights, (x[b] - probes.shift) * probes.scale, y[b]) for b in blocks)
    return sum(np.asarray(part, np.float64) for part in sums) / len(rows)


def _split(count: int, fraction: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    held_out = round(fraction * count)
    if not 0 < held_out < count:
        raise UserError(
            f"validation_fraction={fraction} of {count} training samples leaves {held_out} for validation; "
            "give more samples or another fraction."
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
    """Mean and 1 / standard deviation over the given rows; 0 for constant features, which drops them."""
    x = np.asarray(x)
    blocks = [rows[i : i + BLOCK] for i in range(0, len(rows), BLOCK)]
    mean = sum(x[b].sum(axis=0, dtype=np.float64) for b in blocks) / len(rows)
    deviation = np.sqrt(sum(np.square(x[b] - mean).sum(axis=0) for b in blocks) / len(rows))
    varies = deviation > 1e-6 * deviation.max()
    scale = np.where(varies, 1 / np.where(varies, deviation, 1), 0)
    return mean.astype(np.float32), scale.astype(np.float32)


def _fit(
    xs: tuple[AnyArray, ...],
    y: Int[AnyArray, "N *classes"],
    batches: Int[np.ndarray, "steps batch"],
    moments: list[tuple[AnyArray, AnyArray]],
    learning_rates: Float[AnyArray, " rates"],
    weight_decay: float,
    classes: int,
) -> tuple[Float[Array, "features rates width classes"], Float[Array, "features rates classes"]]:
    """Weights and biases of every feature and rate; prints progress."""
    probes, width = (len(xs), len(learning_rates)), max(x.shape[1] for x in xs)
    zeros = {
        "weight": jnp.zeros((*probes, width, classes), jnp.float32),
        "bias": jnp.zeros((*probes, classes), jnp.float32),
    }
    state = zeros, jax.vmap(jax.vmap(_optimizer(0.0, weight_decay, len(batches)).init))(zeros)
    progress = Progress("linear probes", batches.size)
    for part in np.array_split(batches, -(-len(batches) // SHOWN_STEPS)):
        state = _advance(state, xs, y, part, moments, learning_rates, weight_decay, len(batches))
        jax.block_until_ready(state)
        progress.add(part.size)
    return state[0]["weight"], state[0]["bias"]


def _optimizer(
    rate: float | AnyArray, weight_decay: float | AnyArray, steps: int
) -> optax.GradientTransformation:
    return optax.adamw(
        lambda step: rate * 0.5 * (1 + jnp.cos(jnp.pi * step / steps)), weight_decay=weight_decay
    )


def logits(probe: dict[str, Array], x: Float[Array, "B f"]) -> Float[Array, "B classes"]:
    """One classifier's logits of standardised rows: weight (f, classes), bias (classes,)."""
    return jnp.matmul(x, probe["weight"], precision=jax.lax.Precision.HIGHEST) + probe["bias"]


@partial(jax.jit, static_argnames="steps", donate_argnums=0)
def _advance(
    state,
    xs: tuple[AnyArray, ...],
    y: Int[AnyArray, "N *classes"],
    batches: Int[AnyArray, "some batch"],
    moments: list[tuple[AnyArray, AnyArray]],
    learning_rates: Float[AnyArray, " rates"],
    weight_decay: AnyArray,
    steps: int,
):
    """The state after further steps, under one vmap over (feature, rate).

    Features are padded with zeros to the widest one. Weights of the padding get no gradient and stay at their
    initial zero, so all other weights are as without padding.
    """
    width = state[0]["weight"].shape[2]

    def padded(rows):
        standard = [(x[rows] - shift) * scale for x, (shift, scale) in zip(xs, moments, strict=True)]
        return jnp.stack([jnp.pad(x, ((0, 0), (0, width - x.shape[1]))) for x in standard])

    def loss(probe, x, y):
        out = logits(probe, x)
        if y.ndim == 2:
            return optax.sigmoid_binary_cross_entropy(out, y).mean()
        return optax.softmax_cross_entropy_with_integer_labels(out, y).mean()

    def update(rate, x, y, probe, state):
        optimizer = _optimizer(rate, weight_decay, steps)
        change, state = optimizer.update(jax.grad(loss)(probe, x, y), state, probe)
        return optax.apply_updates(probe, change), state

    together = jax.vmap(jax.vmap(update, (0, None, None, 0, 0)), (None, 0, None, 0, 0))
    return jax.lax.scan(
        lambda state, rows: (together(learning_rates, padded(rows), y[rows], *state), None), state, batches
    )[0]


@jax.jit
def _sums(
    probes: dict[str, Array], x: Float[AnyArray, "B f"], y: Integer[AnyArray, " B"]
) -> Float[Array, "3 rates"]:
    found = jax.vmap(logits, in_axes=(0, None))(probes, x)
    true = jnp.take_along_axis(found, y[None, :, None], axis=2)
    # Ties go to the lower class, as in argmax and top_k.
    before = (found > true) | ((found == true) & (jnp.arange(found.shape[2]) < y[:, None]))
    rank = before.sum(axis=2)
    loss = jax.nn.logsumexp(found, axis=2) - true[..., 0]
    return jnp.stack([(rank < 1).sum(axis=1), (rank < 5).sum(axis=1), loss.sum(axis=1)])
