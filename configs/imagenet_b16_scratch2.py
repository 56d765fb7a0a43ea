"""STELLAR B/16 on ImageNet from random initialisation, second of two stages: the main recipe.

Command:   python main.py --config=configs/imagenet_b16_scratch2.py --config.data.path=TFDS_DIR \
               --config.model.tokenizer.path=FILE
           It starts from the weights of the first stage in runs/imagenet_b16_scratch1; from another workdir
           with --config.init=WORKDIR. TFDS_DIR, FILE and the pixel target: see configs/imagenet_b16.py.
Hardware:  as configs/imagenet_b16.py.
Result:    see configs/imagenet_b16_scratch1.py.

75 epochs without teacher at a masking ratio of 0.8: the weights of the first stage, heads included, and a
new optimizer.
"""

from sparse_vis.config.defaults import default_config

EPOCHS = 75
STEPS_PER_EPOCH = 563  # 1,153,050 of ImageNet's 1,281,167 training images, in whole batches of 2048


def get_config():
    config = default_config()
    config.name = "imagenet_b16_scratch2"
    config.init = "runs/imagenet_b16_scratch1"
    config.model.target = "vq"
    config.loss.reconstruction = 0.05
    config.data.update(source="tfds:imagenet2012", split="train[:90%]", workers=8)
    config.optimizer.peak_lr = 1.5e-4
    config.train.update(batch=2048, steps=EPOCHS * STEPS_PER_EPOCH)
    return config
