"""Evaluations of localization and of reconstruction."""

from __future__ import annotations

from ml_collections import ConfigDict

from sparse_vis.evals.bench import Bench
from sparse_vis.evals.columns import LOCALIZED, RECONSTRUCTED, quality
from sparse_vis.evals.maps.localization import mean_known
from sparse_vis.evals.task import Result, Task


def _localization(bench: Bench, config: ConfigDict) -> Result:
    columns = bench.columns("test")
    iou = mean_known(columns["best_iou"])
    return Result({"": {"fg_ari": mean_known(columns["fg_ari"]), "mbo": iou, "best_iou": iou}})


def _reconstruction(bench: Bench, config: ConfigDict) -> Result:
    networks, test = bench.networks, bench.data.parts["test"]
    metrics, absent = quality(bench.columns("test"), networks, lambda: networks.true_moments(test))
    return Result({"": metrics}, absent)


LOCALIZATION = Task(
    _localization, ("mask",), ("spatial",), lambda data: {"test": (LOCALIZED,)},
    lambda config: {"segments": "argmax over tokens of L, interpolated bilinearly"},
)  # fmt: skip
RECONSTRUCTION = Task(
    _reconstruction, (), ("reconstruction",), lambda data: {"test": (RECONSTRUCTED,)},
    lambda config: {"images": "as the encoder sees them"}, networks=True,
)  # fmt: skip
