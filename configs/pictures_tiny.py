"""The model shipped with the package, `sparse_vis.load("pictures-tiny")`: real objects and photographs.

Command:   python -m benchmarks.evidence.pictures --output=data/pictures
           python main.py --config=configs/pictures_tiny.py
           then python -m sparse_vis export --checkpoint=runs/pictures_tiny --output=FOLDER
Hardware:  2 CPU cores, one hour.
Result:    docs/results.md; sparse_vis/checkpoints/pictures-tiny/README.md.

Weak crops, because a strong crop of a scene of several objects may show none of them.
"""

from sparse_vis.config.defaults import default_config


def get_config():
    config = default_config()
    config.name = "pictures_tiny"
    config.model.update(
        image_size=64, patch=8, width=96, layers=4, heads=3, mlp_dim=384, tokens=8, init_std=0.1
    )
    config.model.decoder.update(width=96, layers=3, heads=3, mlp_dim=384)
    config.model.prototypes.update(count=512, dim=96, hidden=384)
    config.loss.update(
        student_temperature=0.1, sinkhorn_temperature=0.05, reconstruction=200.0, cls_local=0.0
    )
    config.views.update(
        global_count=2, global_scale=(0.5, 1.0), local_count=0, masking_ratio=0.6, hue=0.05,
        grey_probability=0.1, blur_probability=0.2, blur_sigma=(0.1, 0.6),
    )  # fmt: skip
    config.teacher.update(enabled=True, momentum=0.99, final_momentum=0.999)
    config.data.update(source="pictures", path="data/pictures", canvas=64, threads=2)
    config.data.pictures.update(size=64, train_records=2_000_000)
    config.optimizer.update(peak_lr=1.5e-3, final_lr=1e-5, warmup=0.05)
    config.train.update(batch=32, steps=10_000, log_every=200, save_every=500, health_every=1000)
    config.efficiency.update(dtype="float32", unroll=4)
    config.eval.update(
        tasks=("scenes", "photographs", "knn", "linear", "objects", "factorization"),
        beside=("untrained", "pixels"),
        train_records=3000, test_records=1000,
    )  # fmt: skip
    return config
