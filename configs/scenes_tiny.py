"""The model shipped with the package, `sparse_vis.load("scenes-tiny")`: a longer quickstart with a softer L.

Command:   python main.py --config=configs/scenes_tiny.py
           then python -m sparse_vis export --checkpoint=runs/scenes_tiny --output=FOLDER
Hardware:  2 CPU cores.
Result:    sparse_vis/checkpoints/scenes-tiny/README.md.
"""

from sparse_vis.config.experiments import experiment


def get_config():
    config = experiment("quickstart")
    config.name = "scenes_tiny"
    config.model.spatial_temperature = 0.06
    config.train.update(steps=1500, log_every=100, save_every=250, health_every=500)
    return config
