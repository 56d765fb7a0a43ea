"""A tiny ViT on a folder of hundreds to thousands of images, on a CPU, a laptop or one small GPU.

Command:   python main.py --config=configs/folder_small.py --config.data.path=FOLDER
           or in Python: model, params, history = sparse_vis.train("FOLDER")
Hardware:  one CPU core suffices. Decoded images take up to 1 GiB of memory (data.cache).
Result:    with --config.train.steps=400 (12,800 images, 6 minutes of one CPU core with compilation and
           evaluation, seed 0) on 2,000 pictures of 128 px, one object of 12 categories on each, and 600 with
           other objects (docs/pictures.md): reconstruction 17.6 dB (untrained 6.9). kNN, k = 20, of mean S is
           .185, of untrained weights .207, of pixels .222, and .225 by always naming the largest category:
           after so few images it reconstructs coarsely and has learned no classes. For these start from
           weights (configs/dinov2_b14.py), or train much longer (not measured).

With patches of 12 px an image has 64 patches. L is sharper than published (docs/small_experiments.md). Unless
a folder is named for them, evaluations hold out a fifth of the images, which are also trained on, without
labels.
"""

from sparse_vis.config.defaults import default_config


def get_config():
    config = default_config()
    config.name = "folder_small"
    config.model.update(
        image_size=96, patch=12, width=96, layers=4, heads=3, mlp_dim=384, tokens=8, init_std=0.1
    )
    config.model.spatial_temperature = 0.03
    config.model.decoder.update(width=96, layers=2, heads=3, mlp_dim=384)
    config.model.prototypes.update(count=256, dim=96, hidden=384)
    config.loss.update(
        student_temperature=0.1, sinkhorn_temperature=0.05, reconstruction=200.0, cls_local=0.0
    )
    config.views.update(
        global_count=2, global_scale=(0.5, 1.0), local_count=0, masking_ratio=0.6, hue=0.05,
        grey_probability=0.1, blur_probability=0.2, blur_sigma=(0.1, 0.8),
    )  # fmt: skip
    config.teacher.update(enabled=True, momentum=0.99, final_momentum=0.999)
    config.data.update(source="folder", split="", canvas=192, threads=2, cache=1024)
    config.optimizer.update(peak_lr=1.5e-3, final_lr=1e-5, warmup=0.05)
    config.train.update(batch=32, steps=1000, log_every=10, save_every=250, health_every=100)
    config.efficiency.update(dtype="float32", unroll=4)
    config.eval.update(train_split="", test_split="", holdout=0.2)
    return config
