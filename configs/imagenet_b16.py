"""STELLAR B/16 on ImageNet, from MAE weights: the published recipe with 16 tokens and the VQ target.

Command:   python main.py --config=configs/imagenet_b16.py --config.data.path=TFDS_DIR \
               --config.model.tokenizer.path=FILE
           TFDS_DIR holds ImageNet as ArrayRecord; docs/imagenet.md prepares it, or packs a folder of images
           instead. FILE is maskgit-vqgan-imagenet-f16-256.bin (fun-research/TiTok) or the Flax file of the
           MaskGIT release. With the pixel target no tokenizer is needed:
           --config.model.target=pixel --config.loss.reconstruction=10
Hardware:  published: 16 A100 with 80 GB, 128 images each. Fewer devices: raise
           --config.efficiency.microbatches, which changes nothing but memory and time. On an H100, for 128:
           --config.efficiency.attention=pallas --config.efficiency.remat=products (docs/performance.md).
Result:    published, not yet reproduced here: linear 73.26, kNN 67.25, rFID 3.06, LPIPS .2077.

The published configuration keeps 10 % of the training images for validation. To train on all of them:
--config.data.split=train --config.train.steps=93750
"""

from sparse_vis.config.defaults import default_config


def get_config():
    config = default_config()
    config.name = "imagenet_b16"
    config.init = "hf://facebook/vit-mae-base"
    config.model.target = "vq"
    config.loss.reconstruction = 0.05
    config.data.update(source="tfds:imagenet2012", split="train[:90%]", workers=8)
    config.optimizer.peak_lr = 1.5e-4
    # 150 epochs of 1,153,050 of ImageNet's 1,281,167 training images, in whole batches.
    config.train.update(batch=2048, steps=150 * 563)
    return config
