"""STELLAR L/16 on ImageNet, from MAE weights: the published recipe with 16 tokens and the VQ target.

Command:   python main.py --config=configs/imagenet_l16.py --config.data.path=TFDS_DIR \
               --config.model.tokenizer.path=FILE
           TFDS_DIR, FILE and the pixel target: see configs/imagenet_b16.py.
Hardware:  published: 16 A100 with 80 GB, 128 images each. Fewer devices: raise
           --config.efficiency.microbatches, which changes nothing but memory and time.
           Blocks are recomputed in the backward pass (remat): by estimate 128 images would not fit otherwise.
Result:    published, not yet reproduced here: no numbers of this model are at hand; B/16 and H/14 give
           linear 73.26 and 79.10, kNN 67.25 and 77.31, rFID 3.06 and 2.60, LPIPS .2077 and .1729.

The split is the published configuration's, which keeps 10 % of the training images for validation. For all:
--config.data.split=train --config.train.steps=62500
"""

from sparse_vis.config.defaults import default_config

EPOCHS = 100
STEPS_PER_EPOCH = 563  # 1,153,050 of ImageNet's 1,281,167 training images, in whole batches of 2048


def get_config():
    config = default_config()
    config.name = "imagenet_l16"
    config.init = "hf://facebook/vit-mae-large"
    config.model.update(width=1024, layers=24, heads=16, mlp_dim=4096)
    config.model.target = "vq"
    config.loss.reconstruction = 0.05
    config.data.update(source="tfds:imagenet2012", split="train[:90%]", workers=8)
    config.optimizer.peak_lr = 5e-5
    config.train.update(batch=2048, steps=EPOCHS * STEPS_PER_EPOCH)
    config.efficiency.remat = "blocks"
    return config
