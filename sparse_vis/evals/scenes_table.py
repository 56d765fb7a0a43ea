"""The quickstart's table: what a model trained on scenes has learnt, one row per encoder.

Reconstruction, localization and prototypes are measured on held-out scenes like those of training, classes on
held-out scenes with one digit. Digits and backgrounds of held-out scenes do not occur in training.
"""

from __future__ import annotations

import pathlib

import numpy as np
from ml_collections import ConfigDict

from sparse_vis.evals.classes.knn import knn_accuracy, pooled_splits
from sparse_vis.evals.classes.linear import SweepProtocol, sweep
from sparse_vis.evals.columns import LOCALIZED, PROTOTYPE, RECONSTRUCTED, TOKEN_MEANS
from sparse_vis.evals.dataset import Data
from sparse_vis.evals.features import POOLED, square_grid
from sparse_vis.evals.maps.localization import mean_known
from sparse_vis.evals.task import Bench, Reducer, Result, Task
from sparse_vis.viz import figures as viz

NEIGHBOURS, PICTURED = 20, 6


def row(bench: Bench) -> dict[str, float]:
    """An encoder's row of the table: psnr (dB), fg_ari, best_iou, accuracies, and prototype_usage.

    prototype_usage is the share of prototypes that are the most likely one of at least one token.
    """
    columns, found = bench.columns("test"), {}
    if "psnr" in columns:
        found["psnr"] = float(np.mean(columns["psnr"]))
    found |= {name: mean_known(columns[name]) for name in ("fg_ari", "best_iou") if name in columns}
    splits, classes = pooled_splits(bench), bench.data.classes
    if splits:
        train, test = ({name: pair[i].x for name, pair in splits.items()} for i in (0, 1))
        y, test_y = (split.y for split in next(iter(splits.values())))
        protocol = SweepProtocol(seed=bench.seed)
        probes = sweep(train, y, test, test_y, classes=classes, protocol=protocol).alone
        k = min(NEIGHBOURS, len(y))
        for key, name in POOLED.items():
            if name in splits:
                found[f"knn_{key}"] = knn_accuracy(*splits[name], classes=classes, ks=(k,))[k]
                found[f"linear_{key}"] = probes[name].accuracy
    if "prototype" in columns:
        found["prototype_usage"] = len(np.unique(columns["prototype"])) / bench.encoder.prototypes
    return found


def draw(bench: Bench, config: ConfigDict, path: pathlib.Path) -> None:
    """Save a picture (PNG) of the first scenes with reconstructions, masks and token maps."""
    records = next(bench.data.parts["test"].first(PICTURED).batches(bench.batch))
    features = bench.encode(records.image, "reconstruction", "spatial")
    pixels, L = features["reconstruction"], features["spatial"]
    figure = viz.token_sheet(records.image, pixels, L, square_grid(L.shape[1]), records.mask)
    figure.savefig(path, dpi=100)


def _reducers(data: Data) -> dict[str, tuple[Reducer, ...]]:
    """Scores of the scenes, and pooled features of those with one digit."""
    kept: dict[str, tuple[Reducer, ...]] = dict.fromkeys(data.labelled, TOKEN_MEANS)
    return kept | {"test": (*kept.get("test", ()), LOCALIZED, RECONSTRUCTED, PROTOTYPE)}


def _measure(bench: Bench, config: ConfigDict) -> Result:
    return Result({"": row(bench)})


SCENES = Task(
    _measure, ("mask", "label"), ("reconstruction", "spatial", *POOLED), _reducers,
    lambda config: {"neighbours": NEIGHBOURS, "classes": "scenes with one digit"},
    least=(SweepProtocol().least_rows, 1), picture=("localization.png", draw),
)  # fmt: skip
