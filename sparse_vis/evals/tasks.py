"""The evaluations by name."""

from sparse_vis.evals.classes.knn import KNN, RETRIEVAL
from sparse_vis.evals.classes.linear import LINEAR
from sparse_vis.evals.classes.linear_published import LINEAR_PUBLISHED
from sparse_vis.evals.classes.objects import OBJECTS
from sparse_vis.evals.columns import CLASSIFIER, LOCALIZATION, RECONSTRUCTION
from sparse_vis.evals.factors.factorization import FACTORIZATION
from sparse_vis.evals.factors.rate import RATE
from sparse_vis.evals.maps.segmentation import SEGMENTATION
from sparse_vis.evals.pixels.decoder_probe import RECONSTRUCTION_PROBE
from sparse_vis.evals.pixels.photographs import PHOTOGRAPHS
from sparse_vis.evals.scenes_table import SCENES

TASKS = {
    "scenes": SCENES,
    "knn": KNN,
    "linear": LINEAR,
    "linear_published": LINEAR_PUBLISHED,
    "classifier": CLASSIFIER,
    "retrieval": RETRIEVAL,
    "objects": OBJECTS,
    "segmentation": SEGMENTATION,
    "localization": LOCALIZATION,
    "reconstruction_probe": RECONSTRUCTION_PROBE,
    "reconstruction": RECONSTRUCTION,
    "photographs": PHOTOGRAPHS,
    "factorization": FACTORIZATION,
    "rate": RATE,
}
