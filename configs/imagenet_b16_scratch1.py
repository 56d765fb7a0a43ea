"""STELLAR B/16 on ImageNet from random initialisation, first of two stages: with the EMA teacher.

Command:   python main.py --config=configs/imagenet_b16_scratch1.py --config.data.path=TFDS_DIR \
               --config.model.tokenizer.path=FILE
           then the second stage, configs/imagenet_b16_scratch2.py. TFDS_DIR, FILE and the pixel target: see
           configs/imagenet_b16.py.
Hardware:  as for configs/imagenet_b16.py.
Result:    after both stages, published, not yet reproduced here: linear 65.28 (73.26 from MAE weights).

150 epochs with the teacher (momentum 0.996) and a masking ratio of 0.6. The published learning rate of this
recipe is not known; we use that of B/16.
"""

from sparse_vis.config.experiments import experiment


def get_config():
    config = experiment("imagenet_b16")
    config.name = "imagenet_b16_scratch1"
    config.init = ""
    config.views.masking_ratio = 0.6
    config.teacher.update(enabled=True, momentum=0.996, final_momentum=0.996)
    return config
