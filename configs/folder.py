"""A small ViT (S/16) on a folder of your own images, from random initialisation, with the EMA teacher.

Command:   python main.py --config=configs/folder.py --config.data.path=FOLDER
Hardware:  one GPU; about 15 GB by estimate (64 images at a time), less with more
           --config.efficiency.microbatches.
Result:    not measured: it depends on the images. Semantics from random initialisation take many epochs;
           where weights may be downloaded, start from MAE instead (microbatches for one GPU, fewer steps):
           --config=configs/imagenet_b16.py --config.data.source=folder --config.data.split= \
               --config.data.path=FOLDER --config.model.target=pixel --config.loss.reconstruction=10 \
               --config.train.batch=256 --config.train.steps=20000 --config.efficiency.microbatches=8

Any tree of images will do (JPEG, PNG, WebP, TIFF, BMP, GIF), of any size; larger ones are reduced to 512 px.
A file that cannot be used stops the run with its name; with --config.data.on_error=skip it is skipped and
counted.
"""

from sparse_vis.config.defaults import default_config


def get_config():
    config = default_config()
    config.name = "folder"
    config.model.update(width=384, layers=12, heads=6, mlp_dim=1536)
    config.model.prototypes.count = 4096  # fewer images than ImageNet's fill fewer prototypes
    config.views.update(global_count=4, local_count=4, masking_ratio=0.6)
    config.teacher.enabled = True
    config.data.update(source="folder", split="", workers=4)
    config.optimizer.peak_lr = 5e-4
    config.train.update(batch=256, steps=50_000)
    config.efficiency.microbatches = 4
    return config
