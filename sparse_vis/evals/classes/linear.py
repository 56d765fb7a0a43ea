"""Linear probes on frozen features: feature and learning rate are chosen on a held-out part of train."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Integer, Shaped
from ml_collections import ConfigDict

from sparse_vis.evals.columns import CONCATENATED, TOKEN_MEANS
from sparse_vis.evals.dataset import Data, without_unlabelled
from sparse_vis.evals.features import POOLED, AnyArray, check_labelled
from sparse_vis.evals.task import Bench, Reducer, Result, Task
from sparse_vis.runtime.batches import Devices
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.progress import Progress

BLOCK = 2048  # rows at a time outside of training, which bounds memory
STEPS = 50  # steps whose rows are on the devices at a time
ADAM = optax.scale_by_adam()
Features = Mapping[str, Float[AnyArray, "_ _"]]  # name → (N, f), of any widths f
Labels = Integer[AnyArray, " _"]  # (N,)
Sets = Shaped[AnyArray, "_ classes"]  # (N, classes), 0 or 1


@dataclass(frozen=True)
class SweepProtocol:
    """How probes are trained: AdamW, cosine decay to zero, zero initial weights, standardised features."""

    # Initial rates; every feature gets one classifier per rate.
    learning_rates: tuple[float, ...] = tuple(float(rate) for rate in np.logspace(-5, -1, 13))
    validation_fraction: float = 0.1  # share of train that is held out to choose feature and rate
    steps: int = 500
    batch_size: int = 256  # rows per step, or all fitted rows if there are fewer
    weight_decay: float = 1e-4
    seed: int = 0  # decides which rows are held out, and the order of the others

    @property
    def least_rows(self) -> int:
        """Smallest number of train rows that leaves rows to hold out and rows to fit."""
        return next(n for n in itertools.count(2) if 0 < round(self.validation_fraction * n) < n)


@dataclass(frozen=True)
class LinearResult:
    """Top-1 and top-5 accuracy of a probe on test, and feature → held-out accuracies of all rates."""

    accuracy: float
    top5: float
    feature: str
    learning_rate: float
    validation: dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class MultilabelResult:
    """mAP of a probe on test, and feature → held-out mAPs of all rates."""

    mean_average_precision: float
    feature: str
    learning_rate: float
    validation: dict[str, tuple[float, ...]]


class Sweep(NamedTuple):
    """Results on test; to report the best of `alone` would be model selection on test."""

    chosen: LinearResult  # of the feature and rate that are best on held-out rows
    alone: dict[str, LinearResult]  # of each feature, with its best rate


def candidates(columns: Mapping[str, AnyArray]) -> dict[str, Float[np.ndarray, "N _"]]:
    """The features that a sweep compares, from the columns of `columns.py`, as far as an encoder gives them.

    They are "mean_S"; "concat_S", the tokens of S concatenated in the order of their queries; "cls"; and
    "cls_mean_U", CLS and mean U concatenated. Without S and CLS (raw pixels, PCA), it is "mean_U".
    """
    out = {name: np.asarray(columns[name]) for name in ("mean_S", "concat_S", "cls") if name in columns}
    if "mean_U" in columns:
        if "cls" in columns:
            out["cls_mean_U"] = np.concatenate([columns["cls"], columns["mean_U"]], axis=1)
        elif "mean_S" not in columns:
            out["mean_U"] = np.asarray(columns["mean_U"])
    return out


def sweep(
    train: Features,
    train_y: Labels,
    test: Features,
    test_y: Labels,
    *,
    classes: int,
    protocol: SweepProtocol = SweepProtocol(),
) -> Sweep:
    """Train probes of several features at several learning rates together; choose one, and test it.

    All features and rates train under one vmap on the same rows. Feature and rate are chosen on a held-out
    part of train; ties in accuracy go to the lowest loss; the chosen probe is not trained again.

    Args:
        train, test: features of the same names, as from `candidates` or `pool`.
        train_y, test_y: classes, 0 … classes−1.

    Raises:
        UserError: labels are out of range, features are not finite, or no rows are left to fit or hold out.
    """
    # DEVIATION: the published probe (linear_published.py) uses fresh crops in every epoch and LayerNorm. Here
    # features are computed once for all probes, and standardised, which suits raw pixels too.
    for name in train:
        check_labelled(f"train ({name})", train[name], train_y, classes)
        check_labelled(f"test ({name})", test[name], test_y, classes)
    found, held_out = fit_all(train, train_y, classes, protocol)
    alone, losses = {}, {}
    for name, probes in found.items():
        accuracy, _, loss = scores(probes, train[name], train_y, held_out)
        best = int(np.lexsort((loss, -accuracy))[0])
        top1, top5, _ = scores(probes, test[name], test_y, np.arange(len(test_y)))[:, best]
        rate, validation = protocol.learning_rates[best], {name: tuple(accuracy.tolist())}
        alone[name] = LinearResult(float(top1), float(top5), name, rate, validation)
        losses[name] = loss[best]
    validation = {name: result.validation[name] for name, result in alone.items()}
    first = min(alone, key=lambda name: (-max(validation[name]), losses[name]))
    return Sweep(dataclasses.replace(alone[first], validation=validation), alone)


def multilabel_probe(
    train: Features, train_y: Sets, test: Features, test_y: Sets, *, protocol: SweepProtocol = SweepProtocol()
) -> MultilabelResult:
    """As `sweep`, for images with several classes: sigmoid cross-entropy; the best held-out mAP is chosen.

    Ties go to the lower rate and the earlier feature. Labels are bool or 0/1. Raises UserError if no rows are
    left to hold out or to fit, or a part has no label.
    """
    for name, features, y in (("train", train, train_y), ("test", test, test_y)):
        shapes = {key: x.shape for key, x in features.items()}
        if any(shape[0] != len(y) for shape in shapes.values()):
            raise UserError(
                f"the {name} set has features {shapes} and labels {np.shape(y)}; a multi-label probe needs "
                "labels of 0 and 1, one row per image and one column per class."
            )
    found, held_out = fit_all(train, train_y, np.shape(train_y)[1], protocol)

    known = np.asarray(train_y)[held_out]
    validation = {n: _all_maps(found[n], np.asarray(x)[held_out], known) for n, x in train.items()}
    best = max(validation, key=lambda name: max(validation[name]))
    rate = int(np.argmax(validation[best]))
    result = _all_maps(found[best], np.asarray(test[best]), test_y)[rate]
    return MultilabelResult(result, best, protocol.learning_rates[rate], validation)


def _all_maps(probes: Probes, x: Float[np.ndarray, "N f"], y: AnyArray) -> tuple[float, ...]:
    """The mAP of every classifier."""
    weights = zip(np.asarray(probes.weight), np.asarray(probes.bias), strict=True)
    x = (x - probes.shift) * probes.scale
    return tuple(mean_average_precision(x @ weight + bias, y) for weight, bias in weights)


def mean_average_precision(
    scores: Float[AnyArray, "N classes"], targets: Shaped[AnyArray, "N classes"]
) -> float:
    """Mean over classes of the average precision, Σ_k (R_k − R_{k−1}) P_k over a class's distinct scores.

    Larger scores mean more likely; targets are bool or 0/1; classes without an image are left out. Raises
    UserError if no class has an image, or scores are not finite.
    """
    scores, targets = np.asarray(scores), np.asarray(targets).astype(bool)
    if not targets.any():
        raise UserError("mAP needs at least one image with a label; the targets contain none.")
    if not np.isfinite(scores).all():
        raise UserError("the scores contain NaN or infinity; the probe has probably diverged.")
    pairs = zip(scores.T, targets.T, strict=True)
    return float(np.mean([_average_precision(s, t) for s, t in pairs if t.any()]))


def _average_precision(scores: Float[np.ndarray, " N"], targets: Shaped[np.ndarray, " N"]) -> float:
    order = np.argsort(-scores)
    falling, targets = -scores[order], targets[order]
    # Equal scores are retrieved together, so all get the precision at the end of their group.
    retrieved = np.searchsorted(falling, falling, side="right")
    return float(np.mean((np.cumsum(targets)[retrieved - 1] / retrieved)[targets]))


@dataclass(frozen=True)
class Probes:
    """The classifiers of one feature, one per learning rate; their input is (x − shift) · scale."""

    weight: Float[Array, "rates f classes"]
    bias: Float[Array, "rates classes"]
    shift: Float[np.ndarray, " f"]
    scale: Float[np.ndarray, " f"]


def fit_all(
    train: Features, y: AnyArray, classes: int, protocol: SweepProtocol
) -> tuple[dict[str, Probes], Int[np.ndarray, " held_out"]]:
    """Train one classifier per feature and learning rate, all together, on the rows that are not held out.

    Args:
        y: (N,) int for softmax cross-entropy, or (N, classes) bool for one sigmoid per class.

    Returns:
        Name of the feature → its classifiers; indices of the held-out rows, which are the same for all.

    Raises:
        UserError: no rows are left to hold out or to fit.
    """
    rng, count = np.random.default_rng(protocol.seed), round(protocol.validation_fraction * len(y))
    if not 0 < count < len(y):
        raise UserError(
            f"validation_fraction={protocol.validation_fraction} of {len(y)} training samples leaves "
            f"{count} for validation; give more samples or another fraction."
        )
    held_out, fitted = np.split(rng.permutation(len(y)).astype(np.int32), [count])
    moments = [_moments(x, fitted) for x in train.values()]
    weight, bias = _fit([*train.values()], y, fitted, moments, classes, protocol, rng)
    widths = [x.shape[1] for x in train.values()]
    found = {n: Probes(weight[i, :, : widths[i]], bias[i], *moments[i]) for i, n in enumerate(train)}
    return found, held_out


def scores(
    probes: Probes, x: AnyArray, y: AnyArray, rows: Integer[np.ndarray, " n"]
) -> Float[np.ndarray, "3 rates"]:
    """Top-1 and top-5 accuracy and mean cross-entropy of every classifier on the given rows."""
    x, y, weights = np.asarray(x), np.asarray(y), {"weight": probes.weight, "bias": probes.bias}
    blocks = [rows[i : i + BLOCK] for i in range(0, len(rows), BLOCK)]
    sums = (_sums(weights, (x[b] - probes.shift) * probes.scale, y[b]) for b in blocks)
    return sum(np.asarray(part, np.float64) for part in sums) / len(rows)


def _moments(
    x: Float[AnyArray, "N f"], rows: Int[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " f"], Float[np.ndarray, " f"]]:
    """Mean and 1 / standard deviation over the given rows; the latter is 0 for constant features."""
    x, rows = np.asarray(x), np.sort(rows)  # read a memory-mapped file in its order
    blocks = [rows[i : i + BLOCK] for i in range(0, len(rows), BLOCK)]
    mean = sum(x[b].sum(axis=0, dtype=np.float64) for b in blocks) / len(rows)
    deviation = np.sqrt(sum(np.square(x[b] - mean).sum(axis=0) for b in blocks) / len(rows))
    varies = deviation > 1e-6 * deviation.max()
    scale = np.where(varies, 1 / np.where(varies, deviation, 1), 0)
    return mean.astype(np.float32), scale.astype(np.float32)


def _fit(
    xs: list[AnyArray],
    y: AnyArray,
    rows: Int[np.ndarray, " n"],
    moments: list[tuple[np.ndarray, np.ndarray]],
    classes: int,
    protocol: SweepProtocol,
    rng: np.random.Generator,
) -> tuple[Float[Array, "features rates width classes"], Float[Array, "features rates classes"]]:
    """Weights and biases of every feature and rate, the features padded to the widest one."""
    steps, size = protocol.steps, min(protocol.batch_size, len(rows))
    order = np.concatenate([rng.permutation(rows) for _ in range(-(-steps * size // len(rows)))])
    batches = order[: steps * size].reshape(steps, size)
    decay = np.float32(0.5 * (1 + np.cos(np.pi * np.arange(steps) / steps)))
    rates = np.outer(decay, protocol.learning_rates).astype(np.float32)
    probes, width = (len(xs), len(protocol.learning_rates)), max(x.shape[1] for x in xs)
    zeros = {
        "weight": jnp.zeros((*probes, width, classes), jnp.float32),
        "bias": jnp.zeros((*probes, classes), jnp.float32),
    }
    devices, labels = Devices(), np.asarray(y).astype(np.int32)
    state, moments = devices.everywhere(((zeros, ADAM.init(zeros)), moments))
    progress = Progress("linear probes", batches.size, unit="rows")
    for start in range(0, steps, STEPS):
        # Only these steps' rows are read and sent to the devices, as features may be larger than any memory.
        chosen, some = batches[start : start + STEPS], rates[start : start + STEPS]
        read = tuple(np.asarray(x[chosen], np.float32) for x in xs), labels[chosen]
        rows = devices.split(read, axis=1)
        state = _advance(state, rows, moments, some, protocol.weight_decay)
        jax.block_until_ready(state)
        progress.add(chosen.size)
    return state[0]["weight"], state[0]["bias"]


def logits(probe: dict[str, Array], x: Float[Array, "B f"]) -> Float[Array, "B classes"]:
    """Logits of standardised rows, by one classifier with weight (f, classes) and bias (classes,)."""
    return jnp.matmul(x, probe["weight"], precision=jax.lax.Precision.HIGHEST) + probe["bias"]


@partial(jax.jit, donate_argnums=0)
def _advance(
    state: tuple, batches: tuple, moments: list, rates: Float[AnyArray, "steps rates"], weight_decay: AnyArray
) -> tuple:
    """The state after further steps of AdamW.

    Weights of padded features get no gradient and stay zero, so that the others are as without padding.
    """
    width = state[0]["weight"].shape[2]

    def loss(probe, x, y):
        out = logits(probe, x)
        if y.ndim == 2:
            return optax.sigmoid_binary_cross_entropy(out, y).mean()
        return optax.softmax_cross_entropy_with_integer_labels(out, y).mean()

    gradients = jax.vmap(jax.vmap(jax.grad(loss), (0, None, None)), (0, 0, None))

    def step(state, now):
        (probes, memory), ((xs, y), rate) = state, now
        standard = [(x - shift) * scale for x, (shift, scale) in zip(xs, moments, strict=True)]
        padded = jnp.stack([jnp.pad(x, ((0, 0), (0, width - x.shape[1]))) for x in standard])
        change, memory = ADAM.update(gradients(probes, padded, y), memory)
        rate = {"weight": rate[:, None, None], "bias": rate[:, None]}
        probes = jax.tree.map(lambda p, c, r: p - r * (c + weight_decay * p), probes, change, rate)
        return (probes, memory), None

    return jax.lax.scan(step, state, (batches, rates))[0]


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


def _reducers(data: Data) -> dict[str, tuple[Reducer, ...]]:
    parts = {*data.labelled, *(("train", "test") if data.sets else ())}
    return dict.fromkeys(parts, (*TOKEN_MEANS, CONCATENATED))


def _measure(bench: Bench, config: ConfigDict) -> Result:
    data, protocol = bench.data, SweepProtocol(seed=bench.seed)
    train, test = (bench.columns(part) for part in data.labelled)
    metrics, details = {"chosen": {}}, {}
    if "label" in train:
        columns = [{"label": part["label"], **candidates(part)} for part in (train, test)]
        names = [name for name in columns[0] if name != "label"]
        (x, y), (test_x, test_y) = (without_unlabelled(part, names) for part in columns)
        found = sweep(x, y, test_x, test_y, classes=data.classes, protocol=protocol)
        results = {"chosen": found.chosen, **found.alone}
        metrics = {name: {"accuracy": r.accuracy, "top5": r.top5} for name, r in results.items()}
        details = dataclasses.asdict(found.chosen)
    if data.sets:
        parts = [bench.columns(part) for part in ("train", "test")]
        (x, y), (test_x, test_y) = ((candidates(part), part["sets"]) for part in parts)
        sets = multilabel_probe(x, y, test_x, test_y, protocol=protocol)
        metrics["chosen"]["map"] = sets.mean_average_precision
        details["sets"] = dataclasses.asdict(sets)
    return Result(metrics, details=details)


LINEAR = Task(
    _measure, ("class",), tuple(POOLED), _reducers,
    lambda config: dataclasses.asdict(SweepProtocol(seed=config.eval.seed)),
    least=(SweepProtocol().least_rows, 1),
)  # fmt: skip
