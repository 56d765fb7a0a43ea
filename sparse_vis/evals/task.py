"""What an evaluation is: what it needs, keeps of the images and measures."""

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
        metrics: what was measured (a feature, a head; "" where there is but one) → metric → number.
        absent: metric, or the task's name for all of them → why there is no number.
        details: whatever else belongs into the record: plain values.
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
        reads: keys of the encoder without any of which there is nothing to measure.
        reducers: data → part → what is kept of its images in the shared pass.
        protocol: configuration → every constant of the protocol, plain values.
        networks: whether the networks behind rFID and LPIPS are part of it.
        least: numbers of train and test images without which there is nothing to measure; of those with a
            class where it needs one.
    """

    measure: Callable[[Bench, ConfigDict], Result]
    needs: tuple[str, ...]
    reads: tuple[str, ...]
    reducers: Callable[[Data], dict[str, tuple[Reducer, ...]]]
    protocol: Callable[[ConfigDict], dict]
    networks: bool = False
    least: tuple[int, int] = (1, 1)
