"""STELLAR on DINOv2-B/14, one GPU, a folder of your own images.

Command:   python main.py --config=configs/dinov2_b14.py --config.data.path=FOLDER
           The weights come from hf://facebook/dinov2-base (pip install -e ".[hub]"); without a network give a
           folder with its files: --config.init=DIR. With registers: hf://facebook/dinov2-with-registers-base,
           whose four registers become the first of the 16 semantic tokens.
Hardware:  one GPU; 21 GiB by dry run (32 images at a time, compiled for an H100, not run), less with more
           --config.efficiency.microbatches; at least 0.73 s per step there by the same estimate:
           python -m benchmarks.dryrun.dryrun --config=configs/dinov2_b14.py --topology=h100:1x1 --mesh=1,1
Result:    not measured: it depends on the images.

The learning rate is below that of configs/imagenet_b16.py, as the batch is smaller; neither was tuned here.
"""

from sparse_vis.config.defaults import default_config


def get_config():
    config = default_config()
    config.name = "dinov2_b14"
    config.init = "hf://facebook/dinov2-base"
    config.model.update(patch=14, norm_epsilon=1e-6)  # width, layers and heads of B are the defaults
    config.model.prototypes.count = 4096  # fewer images than ImageNet's fill fewer prototypes
    config.views.local_size = 98  # 7 x 7 patches
    config.data.update(source="folder", split="", workers=4)
    config.optimizer.peak_lr = 5e-5
    config.train.update(batch=256, steps=20_000)
    config.efficiency.microbatches = 8
    return config
