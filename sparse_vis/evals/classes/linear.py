"""Linear probes on frozen features: feature and learning rate are chosen on a held-out part of train."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Integer, Shaped
from ml_collections import ConfigDict

from sparse_vis.evals.classes.logistic import Features, SweepProtocol, fit_all, scores
from sparse_vis.evals.columns import CONCATENATED, TOKEN_MEANS
from sparse_vis.evals.dataset import Data, without_unlabelled
from sparse_vis.evals.features import POOLED, AnyArray, check_labelled
from sparse_vis.evals.task import Bench, Reducer, Result, Task
from sparse_vis.runtime.errors import UserError


@dataclass(frozen=True)
class LinearResult:
    """A probe's test result.

    Attributes:
        accuracy: top-1 on test, in [0, 1].
        top5: share of test rows whose class has one of the five largest logits (1 if classes ≤ 5).
        feature, learning_rate: the chosen ones.
        validation: feature → held-out accuracy of every learning rate, in their order.
    """

    accuracy: float
    top5: float
    feature: str
    learning_rate: float
    validation: dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class MultilabelResult:
    """mAP on test of the chosen feature and rate, and the held-out mAPs of every feature and rate."""

    mean_average_precision: float
    feature: str
    learning_rate: float
    validation: dict[str, tuple[float, ...]]


@dataclass(frozen=True)
class Sweep:
    """Results of a sweep.

    Attributes:
        chosen: test result of the feature and learning rate that are best on held-out rows.
        alone: feature → test result with the learning rate that is best for this feature. Reporting the best
            of these would be model selection on test.
    """

    chosen: LinearResult
    alone: dict[str, LinearResult]


def candidates(columns: Mapping[str, AnyArray]) -> dict[str, Float[np.ndarray, "N _"]]:
    """The features that a sweep compares, one vector per image, as far as the columns allow.

    "mean_S"; "concat_S", the tokens of S concatenated in the order of their queries; "cls"; "cls_mean_U", CLS
    and mean U concatenated. An encoder with neither S nor CLS (raw pixels, PCA) has "mean_U" instead.

    Args:
        columns: any of mean_S (N, d), concat_S (N, r·d), cls (N, d) and mean_U (N, d); others are ignored.
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
    train_y: Integer[AnyArray, " N"],
    test: Features,
    test_y: Integer[AnyArray, " M"],
    *,
    classes: int,
    protocol: SweepProtocol = SweepProtocol(),
) -> Sweep:
    """Train probes of several features at several learning rates together; choose one, and test it.

    All features and rates train under one vmap and see the same rows. Feature and rate are chosen on a
    held-out part of train; ties in accuracy go to the lowest loss; nothing is refitted.

    Args:
        train, test: the same names, as from `candidates` or `pool`. train_y, test_y: in 0 … classes−1.

    Raises:
        UserError: labels out of range, features that are not finite, or no rows left to hold out or to fit.
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
        top1, top5, _ = scores(probes.only(best), test[name], test_y, np.arange(len(test_y)))[:, 0]
        validation = {name: tuple(float(a) for a in accuracy)}
        rate = protocol.learning_rates[best]
        alone[name] = LinearResult(float(top1), float(top5), name, rate, validation)
        losses[name] = loss[best]
    validation = {name: result.validation[name] for name, result in alone.items()}
    first = min(alone, key=lambda name: (-max(validation[name]), losses[name]))
    return Sweep(dataclasses.replace(alone[first], validation=validation), alone)


def multilabel_probe(
    train: Features,
    train_y: Shaped[AnyArray, "n_labels classes"],
    test: Features,
    test_y: Shaped[AnyArray, "m_labels classes"],
    *,
    protocol: SweepProtocol = SweepProtocol(),
) -> MultilabelResult:
    """The sweep with sigmoid cross-entropy; the feature and rate with the best held-out mAP are tested.

    Ties go to the lower rate and the earlier feature.

    Args:
        train, test: the same names. train_y, test_y: bool or 0/1, one row per image.

    Raises:
        UserError: no rows left to hold out or to fit, or a part without any label.
    """
    for name, features, y in (("train", train, train_y), ("test", test, test_y)):
        shapes = {key: x.shape for key, x in features.items()}
        if any(shape[0] != len(y) for shape in shapes.values()):
            raise UserError(
                f"the {name} set has features {shapes} and labels {np.shape(y)}; a multi-label probe needs "
                "labels of 0 and 1, one row per image and one column per class."
            )
    found, held_out = fit_all(train, train_y, np.shape(train_y)[1], protocol)

    def score(name: str, rate: int, x: AnyArray, y: AnyArray) -> float:
        f = found[name]
        logits = (x - f.shift) * f.scale @ np.asarray(f.weight[rate]) + np.asarray(f.bias[rate])
        return mean_average_precision(logits, y)

    rates, known = range(len(protocol.learning_rates)), np.asarray(train_y)[held_out]
    validation = {
        name: tuple(score(name, rate, np.asarray(x)[held_out], known) for rate in rates)
        for name, x in train.items()
    }
    best = max(validation, key=lambda name: max(validation[name]))
    rate = int(np.argmax(validation[best]))
    found_map = score(best, rate, np.asarray(test[best]), test_y)
    return MultilabelResult(found_map, best, protocol.learning_rates[rate], validation)


def mean_average_precision(
    scores: Float[AnyArray, "N classes"], targets: Shaped[AnyArray, "N classes"]
) -> float:
    """Mean over classes of the average precision, Σ_k (R_k − R_{k−1}) P_k over a class's distinct scores.

    Args:
        scores: larger is more likely; only their order within a class matters.
        targets: bool or 0/1. Classes without any image are left out of the mean.

    Raises:
        UserError: no class has a positive, or scores are not finite.
    """
    scores, targets = np.asarray(scores), np.asarray(targets).astype(bool)
    if not targets.any():
        raise UserError("mAP needs at least one image with a label; the targets contain none.")
    if not np.isfinite(scores).all():
        raise UserError("the scores contain NaN or infinity; the probe has probably diverged.")
    return float(
        np.mean([_average_precision(s, t) for s, t in zip(scores.T, targets.T, strict=True) if t.any()])
    )


def _average_precision(scores: Float[np.ndarray, " N"], targets: Shaped[np.ndarray, " N"]) -> float:
    order = np.argsort(-scores)
    falling, targets = -scores[order], targets[order]
    # Equal scores are retrieved together, so all get the precision at the end of their group.
    retrieved = np.searchsorted(falling, falling, side="right")
    return float(np.mean((np.cumsum(targets)[retrieved - 1] / retrieved)[targets]))


def _reducers(data: Data) -> dict[str, tuple[Reducer, ...]]:
    parts = {*data.labelled, *(("train", "test") if data.sets else ())}
    return dict.fromkeys(parts, (*TOKEN_MEANS, CONCATENATED))


def _measure(bench: Bench, config: ConfigDict) -> Result:
    data, protocol = bench.data, SweepProtocol(seed=bench.seed)
    train, test = (bench.columns(part) for part in data.labelled)
    metrics, details = {"chosen": {}}, {}
    if "label" in train:
        names = list(candidates(train))
        (x, y), (test_x, test_y) = (
            without_unlabelled({**columns, **candidates(columns)}, names) for columns in (train, test)
        )
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
