"""Fashion-MNIST from random initialisation: a public benchmark that fits a CPU.

Command:   python -m benchmarks.evidence.fashion --output=data/fashion
           python main.py --config=configs/fashion.py
Hardware:  2 CPU cores, about an hour.
Result:    docs/results.md: kNN .826, linear .831 (mean of S; seed 0).

Single centred objects, so strong crops and brightness changes help; patches have a quarter of the image side.
"""

from sparse_vis.config.defaults import default_config


def get_config():
    config = default_config()
    config.name = "fashion"
    config.model.update(
        image_size=28, patch=7, width=96, layers=4, heads=3, mlp_dim=384, tokens=4, init_std=0.1
    )
    config.model.decoder.update(width=96, layers=3, heads=3, mlp_dim=384)
    config.model.prototypes.update(count=256, dim=96, hidden=384)
    config.loss.update(student_temperature=0.1, sinkhorn_temperature=0.04, reconstruction=30.0, cls_local=0.0)
    config.views.update(
        global_count=2, global_scale=(0.35, 1.0), local_count=0, masking_ratio=0.4, saturation=0.0, hue=0.0,
        grey_probability=0.0, blur_probability=0.0,
    )  # fmt: skip
    config.teacher.update(enabled=True, momentum=0.98, final_momentum=0.99)
    config.data.update(source="folder", path="data/fashion", split="train", canvas=28, threads=2)
    config.optimizer.update(peak_lr=2e-3, final_lr=1e-5)
    config.train.update(batch=128, steps=5000, log_every=250, save_every=500, health_every=500)
    config.efficiency.update(dtype="float32", unroll=4)
    config.eval.update(
        tasks=("knn", "linear", "reconstruction", "reconstruction_probe"),
        beside=("untrained", "pixels", "pca"),
        train_records=0, test_records=0, short_side=1.0,  # the official split, whole images
    )  # fmt: skip
    # The new decoder, which encoders without one get too, has the size of the model's own.
    config.eval.reconstruction_probe.update(
        learning_rate=2e-3, epochs=2, width=96, layers=3, heads=3, mlp_dim=384
    )
    return config
