"""STELLAR B/16 on ImageNet from random initialisation, first of two stages: with the EMA teacher.

Command:   python main.py --config=configs/imagenet_b16_scratch1.py --config.data.path=TFDS_DIR \
               --config.model.tokenizer.path=FILE
           then the second stage, configs/imagenet_b16_scratch2.py. TFDS_DIR, FILE and the pixel target: see
           configs/imagenet_b16.py.
Hardware:  as configs/imagenet_b16.py.
Result:    of both stages, published, not yet reproduced here: linear 65.28 (73.26 from MAE weights).

150 epochs with the teacher (momentum 0.996) and a masking ratio of 0.6. The published learning rate of this
recipe is not known; that of B/16 is taken.
"""

from sparse_vis.config.defaults import default_config

EPOCHS = 150
STEPS_PER_EPOCH = 563  # 1,153,050 of ImageNet's 1,281,167 training images, in whole batches of 2048


def get_config():
    config = default_config()
    config.name = "imagenet_b16_scratch1"
    config.model.target = "vq"
    config.loss.reconstruction = 0.05
    config.views.masking_ratio = 0.6
    config.teacher.update(enabled=True, momentum=0.996, final_momentum=0.996)
    config.data.update(source="tfds:imagenet2012", split="train[:90%]", workers=8)
    config.optimizer.peak_lr = 1.5e-4
    config.train.update(batch=2048, steps=EPOCHS * STEPS_PER_EPOCH)
    return config
