"""Linear probes on frozen features: multinomial logistic regression with a learning-rate sweep, and mAP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Integer, Shaped

from sparse_vis.errors import UserError
from sparse_vis.evals.features import AnyArray, check_labelled

LEARNING_RATES = tuple(float(rate) for rate in np.logspace(-5, -1, 13))
# Rows handled at once outside training: bounds the float64 statistics and the logits of all rates.
BLOCK = 2048


@dataclass(frozen=True)
class LinearResult:
    """One probe.

    Attributes:
        accuracy: top-1 on test, in [0, 1].
        top5: share of test rows whose class has one of the five largest logits (1 if classes ≤ 5).
        learning_rate: the one chosen on the held-out part of train.
        validation: held-out accuracy of every learning rate, in their order.
    """

    accuracy: float
    top5: float
    learning_rate: float
    validation: tuple[float, ...]


def linear_accuracy(
    train_x: Float[AnyArray, "N f"],
    train_y: Integer[AnyArray, " n_labels"],
    test_x: Float[AnyArray, "M f"],
    test_y: Integer[AnyArray, " m_labels"],
    *,
    classes: int,
    learning_rates: Sequence[float] = LEARNING_RATES,
    validation_fraction: float = 0.1,
    steps: int = 500,
    batch_size: int = 256,
    weight_decay: float = 1e-4,
    seed: int = 0,
) -> LinearResult:
    """Accuracy of a linear classifier on standardised features: AdamW, cosine, all learning rates at once.

    The classifiers start at zero and see `steps` batches of the train rows that are not held out. The rate
    with the best held-out accuracy (of equals: the lowest loss) is applied to test, without refitting.

    Args:
        train_x: (N, f) float features.
        train_y: (N,) int in 0 … classes−1.
        test_x: (M, f) float features.
        test_y: (M,) int in 0 … classes−1.
        classes: number of classes.
        learning_rates: peak rates, one classifier each.
        validation_fraction: share of train that chooses the rate.
        steps: optimizer steps.
        batch_size: rows per step (all fitted rows where there are fewer).
        weight_decay: decoupled, as in AdamW.
        seed: of the split and of the order of the rows.

    Raises:
        UserError: labels out of range, features that are not finite, or no rows left to hold out or to fit.
    """
    # DEVIATION: the published probe re-augments images and applies LayerNorm. Features are computed once,
    # so that one pass of the encoder serves all rates, and standardising suits raw pixels too.
    check_labelled("train", train_x, train_y, classes)
    check_labelled("test", test_x, test_y, classes)
    rng = np.random.default_rng(seed)
    held_out, fitted = _split(len(train_x), validation_fraction, rng)
    batches = _batches(fitted, steps, batch_size, rng)
    shift, scale = _moments(train_x, fitted)
    x, y = jnp.asarray(train_x, jnp.float32), jnp.asarray(train_y, jnp.int32)
    probes = _fit(x, y, batches, shift, scale, jnp.asarray(learning_rates), weight_decay, classes)

    accuracy, _, loss = _evaluate(probes, train_x, train_y, held_out, shift, scale)
    chosen = int(np.lexsort((loss, -accuracy))[0])
    probe = jax.tree.map(lambda p: p[chosen : chosen + 1], probes)
    top1, top5, _ = _evaluate(probe, test_x, test_y, np.arange(len(test_x)), shift, scale)
    return LinearResult(
        float(top1[0]), float(top5[0]), float(learning_rates[chosen]), tuple(float(a) for a in accuracy)
    )


def linear_accuracies(
    train: Mapping[str, Float[AnyArray, "N _"]],
    train_y: Integer[AnyArray, " n_labels"],
    test: Mapping[str, Float[AnyArray, "M _"]],
    test_y: Integer[AnyArray, " m_labels"],
    *,
    classes: int,
    seed: int = 0,
) -> dict[str, LinearResult]:
    """`linear_accuracy` of several feature sets of the same images, as from `pool`; widths may differ.

    Args and errors as there; train and test map the same names to (N, f) and (M, f) features.
    """
    return {
        name: linear_accuracy(train[name], train_y, test[name], test_y, classes=classes, seed=seed)
        for name in train
    }


def mean_average_precision(
    scores: Float[AnyArray, "N classes"], targets: Shaped[AnyArray, "N classes"]
) -> float:
    """Mean over classes of the average precision, Σ_k (R_k − R_{k−1}) P_k over a class's distinct scores.

    Args:
        scores: (N, classes) float, larger is more likely; only their order within a class matters.
        targets: (N, classes) bool or 0/1. Classes that no image has are left out of the mean.

    Returns:
        float in [0, 1].

    Raises:
        UserError: no class has a positive, or scores are not finite.
    """
    scores, targets = np.asarray(scores), np.asarray(targets).astype(bool)
    if not targets.any():
        raise UserError("mAP needs at least one image with a label; the targets hold none.")
    if not np.isfinite(scores).all():
        raise UserError("The scores hold NaN or infinity; look for a diverged probe.")
    return float(
        np.mean([_average_precision(s, t) for s, t in zip(scores.T, targets.T, strict=True) if t.any()])
    )


def _average_precision(scores: Float[np.ndarray, " N"], targets: Shaped[np.ndarray, " N"]) -> float:
    order = np.argsort(-scores)
    falling, targets = -scores[order], targets[order]
    # Equal scores are retrieved together, so all of them have the precision at the end of their group.
    retrieved = np.searchsorted(falling, falling, side="right")
    return float(np.mean((np.cumsum(targets)[retrieved - 1] / retrieved)[targets]))


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


def _logits(probe: dict[str, Array], x: Float[Array, "B f"]) -> Float[Array, "B classes"]:
    return jnp.matmul(x, probe["weight"], precision=jax.lax.Precision.HIGHEST) + probe["bias"]


@partial(jax.jit, static_argnames="classes")
def _fit(
    x: Float[Array, "N f"],
    y: Int[Array, " N"],
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
        logits = _logits(probe, (x[rows] - shift) * scale)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y[rows]).mean()

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


def _evaluate(
    probes: dict[str, Array],
    x: Float[AnyArray, "N f"],
    y: Integer[AnyArray, " N"],
    rows: Integer[np.ndarray, " n"],
    shift: Float[np.ndarray, " f"],
    scale: Float[np.ndarray, " f"],
) -> np.ndarray:
    """Top-1, top-5 and mean cross-entropy of every probe on the given rows: (3, rates)."""
    x, y = np.asarray(x), np.asarray(y)
    blocks = [rows[i : i + BLOCK] for i in range(0, len(rows), BLOCK)]
    return sum(np.asarray(_sums(probes, (x[b] - shift) * scale, y[b]), np.float64) for b in blocks) / len(
        rows
    )


@jax.jit
def _sums(
    probes: dict[str, Array], x: Float[AnyArray, "B f"], y: Integer[AnyArray, " B"]
) -> Float[Array, "3 rates"]:
    logits = jax.vmap(_logits, in_axes=(0, None))(probes, x)
    true = jnp.take_along_axis(logits, y[None, :, None], axis=2)
    # As argmax and top_k do: of equal logits the lower class comes first.
    before = (logits > true) | ((logits == true) & (jnp.arange(logits.shape[2]) < y[:, None]))
    rank = before.sum(axis=2)
    loss = jax.nn.logsumexp(logits, axis=2) - true[..., 0]
    return jnp.stack([(rank < 1).sum(axis=1), (rank < 5).sum(axis=1), loss.sum(axis=1)])
