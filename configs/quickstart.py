"""A small model from random initialisation on the built-in scenes, with the EMA teacher.

Command:   python main.py --config=configs/quickstart.py
Hardware:  2 CPU cores, at most 6 minutes, compile included.
Result:    in runs/quickstart a table on held-out scenes, localization.png, photographs.png: reconstruction,
           also of photographs, which are larger, and localization clearly above untrained weights.

Reconstruction has weight 100 instead of the published 10: a few minutes suffice to learn pixels, not classes.
L is sharper than published (0.06): then each token covers a part of the image (docs/small_experiments.md).
"""

from sparse_vis.config.defaults import default_config


def get_config():
    config = default_config()
    config.name = "quickstart"
    config.model.update(image_size=48, patch=6, width=64, layers=4, heads=2, mlp_dim=256, tokens=8)
    config.model.spatial_temperature = 0.03
    config.model.decoder.update(width=64, layers=2, heads=2, mlp_dim=256)
    config.model.prototypes.update(count=256, dim=64, hidden=256)
    config.loss.reconstruction = 100.0
    config.views.update(
        global_count=2, local_count=1, local_size=24, masking_ratio=0.75, hue=0.05, blur_sigma=(0.1, 0.8)
    )
    config.teacher.update(enabled=True, momentum=0.99, final_momentum=0.99)
    config.data.update(source="scenes", canvas=48, threads=2)
    config.data.scenes.update(size=48, max_digits=4)
    config.optimizer.update(peak_lr=3e-3, final_lr=1e-5)
    config.train.update(batch=32, steps=800, log_every=50, save_every=400, health_every=100)
    config.efficiency.dtype = "float32"
    config.eval.update(tasks=("scenes", "photographs"), beside=("untrained", "mean_colour"), test_records=500)
    return config
