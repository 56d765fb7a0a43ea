"""Drawn pictures in category folders, from random initialisation: the other half of docs/results.md.

Command:   python -m benchmarks.evidence.openclipart --output=data/openclipart
           python main.py --config=configs/clipart.py
Hardware:  2 CPU cores.
Result:    docs/results.md.

The recipe is that of configs/digits.py for a third of its steps, 14 times through the data; views may be
mirrored.
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
