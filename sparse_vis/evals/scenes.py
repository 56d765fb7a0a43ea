"""The quickstart's table: what a model trained on scenes has learnt, one row per encoder.

Reconstruction, localization and prototypes are measured on held-out scenes like those of training, classes on
held-out scenes with one digit. Digits and backgrounds of held-out scenes do not occur in training.
"""

from __future__ import annotations

import pathlib

import numpy as np

from sparse_vis.evals.bench import Bench, Reducer
from sparse_vis.evals.classes.class_tasks import pooled_splits
from sparse_vis.evals.classes.knn import knn_accuracy
from sparse_vis.evals.classes.linear import sweep
from sparse_vis.evals.classes.logistic import Protocol
from sparse_vis.evals.columns import LOCALIZED, POOLED, PROTOTYPE, RECONSTRUCTED
from sparse_vis.evals.dataset import Data
from sparse_vis.evals.features import square_grid
from sparse_vis.evals.maps.localization import mean_known
from sparse_vis.viz import figures as viz

FEATURES = {"mean_S": "sparse", "cls": "cls", "mean_U": "dense"}  # pooled feature -> name of its columns
NEIGHBOURS, PICTURED = 20, 6


def reducers(data: Data) -> dict[str, tuple[Reducer, ...]]:
    """Scores of the scenes, and pooled features of those with one digit."""
    kept: dict[str, tuple[Reducer, ...]] = dict.fromkeys(data.labelled, POOLED)
    return kept | {"test": (*kept.get("test", ()), LOCALIZED, RECONSTRUCTED, PROTOTYPE)}


def row(bench: Bench, seed: int) -> dict[str, float]:
    """An encoder's row of the table: psnr (dB), fg_ari, best_iou, accuracies, and prototype_usage.

    prototype_usage is the share of prototypes that are the most likely one of at least one token.

    Args:
        bench: of the encoder. seed: of the linear probes.
    """
    columns, found = bench.columns("test"), {}
    if "psnr" in columns:
        found["psnr"] = float(np.mean(columns["psnr"]))
    for name in ("fg_ari", "best_iou"):
        if name in columns:
            found[name] = mean_known(columns[name])
    splits, classes = pooled_splits(bench), bench.data.classes
    if splits:
        train, test = ({name: pair[i].x for name, pair in splits.items()} for i in (0, 1))
        known, asked = next(iter(splits.values()))
        probes = sweep(train, known.y, test, asked.y, classes=classes, protocol=Protocol(seed=seed)).alone
        k = min(NEIGHBOURS, len(known.y))
        for name, (known, asked) in splits.items():
            found[f"knn_{FEATURES[name]}"] = knn_accuracy(known, asked, classes=classes, ks=(k,))[k]
            found[f"linear_{FEATURES[name]}"] = probes[name].accuracy
    if "prototype" in columns:
        found["prototype_usage"] = len(np.unique(columns["prototype"])) / bench.encoder.prototypes
    return found


def draw(bench: Bench, path: pathlib.Path) -> None:
    """Save a picture of the first scenes with reconstructions, masks and token maps.

    Args:
        bench: of an encoder that gives reconstructions and L. path: of the PNG.
    """
    records = next(bench.data.parts["test"].first(PICTURED).batches(bench.batch))
    features = bench.encode(records.image, "reconstruction", "spatial")
    grid = square_grid(features["spatial"].shape[1])
    viz.token_sheet(
        records.image, features["reconstruction"], features["spatial"], grid, records.mask
    ).savefig(path, dpi=100)
