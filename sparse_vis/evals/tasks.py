"""The evaluations by name."""

from __future__ import annotations

from ml_collections import ConfigDict

from sparse_vis.evals import scenes
from sparse_vis.evals.bench import Bench
from sparse_vis.evals.classes.class_tasks import KNN, LINEAR, RETRIEVAL
from sparse_vis.evals.classes.logistic import Protocol
from sparse_vis.evals.classes.published_task import LINEAR_PUBLISHED
from sparse_vis.evals.factors.factorization import FACTORIZATION
from sparse_vis.evals.factors.rate import RATE
from sparse_vis.evals.image_tasks import LOCALIZATION, RECONSTRUCTION
from sparse_vis.evals.maps.segmentation import SEGMENTATION
from sparse_vis.evals.pixels.decoder_probe import RECONSTRUCTION_PROBE
from sparse_vis.evals.task import Result, Task


def _scenes(bench: Bench, config: ConfigDict) -> Result:
    return Result({"": scenes.row(bench, bench.seed)})


TASKS = {
    "scenes": Task(
        _scenes, ("mask", "label"), ("reconstruction", "spatial", "sparse", "cls", "dense"), scenes.reducers,
        lambda config: {"neighbours": scenes.NEIGHBOURS, "classes": "scenes with one digit"},
        least=(Protocol().least_rows, 1),
    ),
    "knn": KNN,
    "linear": LINEAR,
    "linear_published": LINEAR_PUBLISHED,
    "retrieval": RETRIEVAL,
    "segmentation": SEGMENTATION,
    "localization": LOCALIZATION,
    "reconstruction_probe": RECONSTRUCTION_PROBE,
    "reconstruction": RECONSTRUCTION,
    "factorization": FACTORIZATION,
    "rate": RATE,
}  # fmt: skip
