"""Measure images/s of extraction and evaluations, and of the encoder alone and transformers' pipeline.

    python -m benchmarks.speed.evaluation --json=benchmarks/results/evaluation.json

A ViT-S/16 of 224 pixels with random weights reads JPEG files of 500 x 375 pixels. Each row is a command in
new processes, once with few files and once with all; only the difference counts, without start and
compilation. The row `encoder` computes the same features of images in memory, `decoder` also reconstructs
them. `linear` and `knn` read all images, `reconstruction` only the test part, a fifth. Needs transformers and
torch.
"""

import tempfile
import time
from pathlib import Path

from benchmarks.speed import command
from benchmarks.speed.input import photographs
from sparse_vis.config.defaults import default_config
from sparse_vis.runtime.errors import UserError, command_line
from sparse_vis.runtime.tools import positive

HOLDOUT = 0.2  # share of the images that are the test part
FEW, DIFFERENT, BATCH = 64, 200, 32
CONFIG = """
from benchmarks.speed.evaluation import vit_s
get_config = lambda: vit_s({folder!r})
"""
BARE = """
import sys
import numpy as np, jax, sparse_vis
from sparse_vis.api import encode, reconstruct
checkpoint, count, batch, decode = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "decoder"
model, params = sparse_vis.load(checkpoint)
images = np.random.default_rng(0).integers(0, 256, (batch, 224, 224, 3), np.uint8)
def compute(pixels):
    found = encode(model, params, pixels)
    return reconstruct(model, params, found) if decode else (found.cls, found.sparse, found.spatial)
program = jax.jit(compute)
jax.block_until_ready(program(images))
for _ in range(count // batch):
    jax.device_get(program(images))
"""
PIPELINE = """
import pathlib, sys
import torch
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel, pipeline
folder, batch = sys.argv[1], int(sys.argv[2])
sizes = dict(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, intermediate_size=1536)
encoder = ViTModel(ViTConfig(image_size=224, patch_size=16, **sizes)).eval()
task, images = "image-feature-extraction", ViTImageProcessorPil()
read = pipeline(task, model=encoder, image_processor=images, device="cpu")
with torch.inference_mode():
    for _ in read(sorted(map(str, pathlib.Path(folder).rglob("*.jpg"))), batch_size=batch):
        pass
"""


def vit_s(folder: str):
    """Configuration of the model, and of its evaluation on a folder of images."""
    config = default_config()
    config.name = "vit_s"
    config.model.update(image_size=224, patch=16, width=384, layers=12, heads=6, mlp_dim=1536, tokens=16)
    config.model.decoder.update(width=384, layers=2, heads=6, mlp_dim=1536)
    config.model.prototypes.update(count=64, dim=64, hidden=64)
    config.data.update(source="folder", path=folder, split="", threads=2)
    config.efficiency.update(dtype="float32", unroll=12)
    config.eval.update(
        train_split="", test_split="", holdout=HOLDOUT, train_records=0, test_records=0, batch=BATCH,
        beside=(), dtype="float32",
    )  # fmt: skip
    return config


def write_images(folder: Path, files: list[bytes], count: int) -> None:
    """Write `count` files of two classes, repeating the few given ones."""
    for i in range(count):
        path = folder / "ab"[i % 2] / f"{i:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[i % len(files)])


def write_checkpoint(workdir: Path, config) -> None:
    """A checkpoint of random weights at step 1."""
    from sparse_vis.train.loop import write_config
    from tests.tiny_checkpoint import write_checkpoints

    write_checkpoints(workdir, {1: 0}, config=config)
    write_config(config, workdir)


def commands(name: str, folder: Path, count: int) -> list[str]:
    """The command of a row, for `count` images."""
    images, run = folder / f"images{count}", folder / f"run{count}"
    if name in ("encoder", "decoder"):
        return ["-c", BARE, str(run), str(count), str(BATCH), name]
    if name == "transformers":
        return ["-c", PIPELINE, str(images), str(BATCH)]
    if name == "extract":
        flags = f"--output={folder / f'features{count}'}", f"--batch={BATCH}", "--outputs=cls,sparse,spatial"
        return ["-m", "sparse_vis", "extract", f"--checkpoint={run}", f"--input={images}", *flags]
    config, task = folder / f"config{count}.py", f"--config.eval.tasks=('{name}',)"
    return ["main.py", f"--config={config}", f"--workdir={run}", "--mode=evaluate", task]


# Row -> the row with which it is compared.
ROWS = {
    "encoder": "encoder", "extract": "encoder", "knn": "encoder", "linear": "encoder",
    "decoder": "decoder", "reconstruction": "decoder", "transformers": "encoder",
}  # fmt: skip


def seconds(arguments: list[str]) -> float:
    """Wall time of a command."""
    began = time.perf_counter()
    command.printed_by(*arguments)
    return time.perf_counter() - began


def main() -> None:
    parser = command.script_parser(__spec__, __doc__)
    parser.add_argument("--images", type=positive, default=5000, metavar="N", help="JPEG files (%(default)s)")
    parser.add_argument("--only", default=",".join(ROWS), metavar="ROWS", help="(all) of: %(default)s")
    parser.add_argument("--json", metavar="FILE", help="file for the numbers")
    given = parser.parse_args()
    if given.images < 2 * FEW:
        raise UserError(f"--images={given.images} is too small to be timed; give {2 * FEW} or more.")
    names = given.only.split(",")
    if wrong := [name for name in names if name not in ROWS]:
        raise UserError(f"--only={wrong[0]} is unknown; choose from {', '.join(ROWS)}.")
    command.check_file(given.json)
    with tempfile.TemporaryDirectory() as place:
        folder, found, files = Path(place), {}, photographs(DIFFERENT, 500, 375)
        for count in (FEW, given.images):
            write_images(folder / f"images{count}", files, count)
            (folder / f"config{count}.py").write_text(CONFIG.format(folder=str(folder / f"images{count}")))
            write_checkpoint(folder / f"run{count}", vit_s(str(folder / f"images{count}")))
        print("| | images/s | share |\n|---|---|---|", flush=True)
        for name in names:
            few, many = (seconds(commands(name, folder, count)) for count in (FEW, given.images))
            read = HOLDOUT if name == "reconstruction" else 1
            found[name], other = read * (given.images - FEW) / (many - few), ROWS[name]
            share = f"{found[name] / found[other]:.2f} of {other}" if other in found else "-"
            print(f"| {name} | {found[name]:.1f} | {share} |", flush=True)
            command.write_json(given.json, {"images": given.images, "few": FEW, "images_per_second": found})


if __name__ == "__main__":
    command_line(main)
