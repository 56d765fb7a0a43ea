"""STELLAR B/16 on ImageNet from random initialisation, second of two stages: the main recipe.

Command:   python main.py --config=configs/imagenet_b16_scratch2.py --config.data.path=TFDS_DIR \
               --config.model.tokenizer.path=FILE
           It starts from the weights of the first stage in runs/imagenet_b16_scratch1; from another workdir
           with --config.init=WORKDIR. TFDS_DIR, FILE and the pixel target: see configs/imagenet_b16.py.
Hardware:  as for configs/imagenet_b16.py.
Result:    see configs/imagenet_b16_scratch1.py.

75 epochs without teacher at a masking ratio of 0.8, from the weights of the first stage, heads included, and
with a new optimizer.
"""

from sparse_vis.config.experiments import experiment


def get_config():
    config = experiment("imagenet_b16")
    config.name = "imagenet_b16_scratch2"
    config.init = "runs/imagenet_b16_scratch1"
    config.train.steps = config.train.steps * 75 // 150  # epochs, instead of B/16's
    return config
