"""Interface of an evaluation: what it needs, what it keeps of each image, what it measures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ml_collections import ConfigDict

from sparse_vis.evals.bench import Bench, Reducer
from sparse_vis.evals.dataset import Data

Metrics = dict[str, dict[str, float | int]]


@dataclass(frozen=True)
class Result:
    """What a task measured of an encoder.

    Attributes:
        metrics: what was measured (a feature or head; "" if there is only one) → metric → number.
        absent: metric, or the task's name for all of them → why there is no number.
        details: other plain values for the record of results.
    """

    metrics: Metrics
    absent: dict[str, str] = field(default_factory=dict)
    details: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """One evaluation.

    Attributes:
        measure: bench and complete configuration → Result.
        needs: what records must have: "label", "class" (a label or a set), "mask" (instances), "map".
        reads: features of the encoder, of which the task needs at least one.
        reducers: data → part → Reducers that the shared pass over its images applies.
        protocol: configuration → all constants of the protocol, as plain values.
        networks: whether the task uses the networks of rFID and LPIPS.
        least: smallest numbers of train and test images; with a class, if the task needs classes.
    """

    measure: Callable[[Bench, ConfigDict], Result]
    needs: tuple[str, ...]
    reads: tuple[str, ...]
    reducers: Callable[[Data], dict[str, tuple[Reducer, ...]]]
    protocol: Callable[[ConfigDict], dict]
    networks: bool = False
    least: tuple[int, int] = (1, 1)
