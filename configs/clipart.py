"""Drawings in category folders, from random initialisation: the second experiment of docs/results.md.

Command:   python -m benchmarks.evidence.openclipart --output=data/openclipart
           python main.py --config=configs/clipart.py
Hardware:  2 CPU cores.
Result:    docs/results.md.

The recipe of configs/digits.py with a third of its steps (14 epochs) and horizontal flips.
"""

from sparse_vis.config.experiments import experiment


def get_config():
    config = experiment("digits")
    config.name = "clipart"
    config.model.update(image_size=32, patch=8)
    config.train.steps = 1000
    config.views.flip_probability = 0.5
    config.data.update(source="folder", path="data/openclipart", canvas=128)
    config.eval.update(
        tasks=("knn", "linear", "retrieval", "reconstruction"), train_records=0, test_records=0
    )
    return config
