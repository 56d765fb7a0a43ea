"""Released STELLAR B/16 on ImageNet by the published protocols, compared with the published figures.

Command:   python main.py --config=configs/reproduce_b16.py --mode=evaluate --config.data.path=TFDS_DIR \
               --config.model.tokenizer.path=FILE --config.eval.inception=FILE \
               --config.eval.lpips.alexnet=FILE --config.eval.lpips.heads=FILE
           TFDS_DIR holds ImageNet as ArrayRecord (docs/imagenet.md); the tokenizer is
           maskgit-vqgan-imagenet-f16-256.bin; docs/evaluation.md says where the networks' files come from.
Hardware:  one GPU; by estimate days, nearly all of it 50 passes over ImageNet's training images. Results of
           finished tasks are kept: the same command continues with the next task.
Result:    a table of measured and published figures; the exit status is 1 if one is missed or absent. Not yet
           run in full: we had neither ImageNet nor the weights.

Everything is as released: bfloat16, images resized without antialiasing, a tenth of the training images held
out, and the decoder tested on random crops, as the released test set is configured (the row "Z, centre" has
centre crops instead). The paper states neither k (20 here) nor its seeds, so figures may differ a little: by
half a point for the linear probe, one point for kNN, a tenth of the rFID, .01 for LPIPS.
"""

from sparse_vis.config.defaults import default_config

PUBLISHED = (  # with 16 tokens: docs/method.md section 8
    ("knn", "mean_S", "k20", 0.6725, 0.01),
    ("linear_published", "mean_S", "accuracy", 0.7326, 0.005),
    ("reconstruction_probe", "Z, random crops", "rfid", 3.06, 0.3),
    ("reconstruction_probe", "Z, random crops", "lpips", 0.2077, 0.01),
)


def get_config():
    config = default_config()
    config.name = "reproduce_b16"
    config.init = "hf://microsoft/STELLAR/stellar-b16"
    config.model.target = "vq"
    config.data.update(source="tfds:imagenet2012", threads=8)
    tasks = tuple(dict.fromkeys(task for task, *_ in PUBLISHED))
    config.eval.update(tasks=tasks, expected=PUBLISHED, test_split="validation", train_records=0)
    # Published resizing for kNN's images too.
    config.eval.update(test_records=0, batch=256, resize="published", dtype="bfloat16")
    config.eval.reconstruction_probe.target = "vq"
    return config
