"""Released STELLAR H/14 on ImageNet by the published protocols, compared with the published figures.

Command:   python main.py --config=configs/reproduce_h14.py --mode=evaluate --config.data.path=TFDS_DIR \
               --config.model.tokenizer.path=FILE --config.eval.inception=FILE \
               --config.eval.lpips.alexnet=FILE --config.eval.lpips.heads=FILE
           The files: see configs/reproduce_b16.py.
Hardware:  one GPU; about seven times the time of configs/reproduce_b16.py, by the number of operations.
Result:    a table of measured and published figures; the exit status is 1 if one is missed or absent. Not yet
           run in full: ImageNet and the weights were not at hand.

Protocol and tolerances as for B/16.
"""

from sparse_vis.config.defaults import default_config

PUBLISHED = (  # with 16 tokens: method.md section 8
    ("knn", "mean_S", "k20", 0.7731, 0.01),
    ("linear_published", "mean_S", "accuracy", 0.7910, 0.005),
    ("reconstruction_probe", "Z, random crops", "rfid", 2.60, 0.3),
    ("reconstruction_probe", "Z, random crops", "lpips", 0.1729, 0.01),
)


def get_config():
    config = default_config()
    config.name = "reproduce_h14"
    config.init = "hf://microsoft/STELLAR/stellar-h16"  # H/14 with 16 tokens
    config.model.update(patch=14, width=1280, layers=32, heads=16, mlp_dim=5120)
    config.model.target = "vq"
    config.data.update(source="tfds:imagenet2012", threads=8)
    config.eval.update(
        tasks=tuple(dict.fromkeys(task for task, *_ in PUBLISHED)),
        expected=PUBLISHED,
        test_split="validation",
        train_records=0,
        test_records=0,
        batch=256,
        resize="published",  # kNN's images too
        dtype="bfloat16",
    )
    config.eval.reconstruction_probe.target = "vq"
    return config
