"""The quickstart's table, a row per encoder: reconstruction, localization, prototypes on held-out scenes.

Training has seen neither the objects nor the backgrounds of these scenes.
"""

from __future__ import annotations

import numpy as np
from ml_collections import ConfigDict

from sparse_vis.evals.columns import LOCALIZED, PROTOTYPE, RECONSTRUCTED, localization
from sparse_vis.evals.features import square_grid
from sparse_vis.evals.task import Bench, Result, Task
from sparse_vis.runtime.paths import AnyPath

PICTURED = 6


def row(bench: Bench) -> dict[str, float]:
    """An encoder's row of the table: psnr (dB), fg_ari, best_iou and prototype_usage.

    prototype_usage is the share of prototypes that are the most likely one of some token.
    """
    columns, found = bench.columns("test"), {}
    if "psnr" in columns:
        found["psnr"] = float(np.mean(columns["psnr"]))
    found |= localization(columns)
    if "prototype" in columns:
        found["prototype_usage"] = len(np.unique(columns["prototype"])) / bench.encoder.prototypes
    return found


def draw(bench: Bench, config: ConfigDict, path: AnyPath) -> None:
    """Save a picture (PNG) of the first scenes with reconstructions, masks and token maps."""
    from sparse_vis.viz import figures as viz  # imports matplotlib

    records = next(bench.data.parts["test"].only(np.s_[:PICTURED]).batches(bench.batch))
    features = bench.encode(records.image, "reconstruction", "spatial")
    pixels, L = features["reconstruction"], features["spatial"]
    figure = viz.token_sheet(records.image, pixels, L, square_grid(L.shape[1]), records.mask)
    figure.savefig(path, dpi=100, format="png")


SCENES = Task(
    lambda bench, config: Result({"": row(bench)}), ("mask",), ("reconstruction", "spatial", "prototype"),
    lambda data: {"test": (LOCALIZED, RECONSTRUCTED, PROTOTYPE)}, lambda config: {},
    picture=("localization.png", draw),
)  # fmt: skip
