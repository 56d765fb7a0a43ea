"""Centred white digits from random initialisation: data and recipe of docs/small_experiments.md.

Command:   python main.py --config=configs/digits.py
Hardware:  2 CPU cores.
Result:    docs/small_experiments.md: kNN and linear from S far above the untrained encoder.

One token: with several, L can encode which patches hold ink, and S need not encode the digit
(docs/small_experiments.md). A narrow ViT needs larger initial weights than the published 0.02. A small data
set needs few prototypes, lower temperatures and a lower teacher momentum. Strong crops and colour changes
help little in so short a training.
"""

from sparse_vis.config.defaults import default_config


def get_config():
    config = default_config()
    config.name = "digits"
    config.model.update(
        image_size=28, patch=7, width=64, layers=3, heads=2, mlp_dim=256, tokens=1, init_std=0.1
    )
    config.model.decoder.update(width=64, layers=2, heads=2, mlp_dim=256)
    config.model.prototypes.update(count=64, dim=64, hidden=128)
    config.loss.update(
        student_temperature=0.1, sinkhorn_temperature=0.04, reconstruction=100.0, cls_local=0.0,
        koleo_image=0.0, koleo_masked=0.0,
    )  # fmt: skip
    config.views.update(
        global_count=2, global_scale=(0.8, 1.0), local_count=0, aspect=(0.9, 1.11), masking_ratio=0.5,
        flip_probability=0.0, jitter_probability=0.0, grey_probability=0.0, blur_probability=0.0,
    )  # fmt: skip
    config.teacher.update(enabled=True, momentum=0.98, final_momentum=0.99)
    config.data.update(source="scenes", canvas=28, threads=2)
    config.data.scenes.update(size=28, digits="one", colours="white", digit_scale=(0.72, 0.72))
    config.optimizer.update(peak_lr=2e-3, final_lr=1e-5)
    config.train.update(batch=64, steps=3000, log_every=200, save_every=500, health_every=250)
    config.efficiency.dtype = "float32"
    config.eval.update(
        tasks=("knn", "linear", "reconstruction", "localization"), beside=("untrained", "pixels", "pca"),
        train_records=3000, test_records=2000,
    )  # fmt: skip
    return config
