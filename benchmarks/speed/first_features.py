"""Measure the time from the first import to the first features of a small model, and the same in PyTorch.

    python -m benchmarks.speed.first_features

Each run is a new process: import, read weights from a safetensors file, encode one image. The start of Python
does not count. Runs alternate; the first of each only fills the caches of compiled programs and of files.
"""

import statistics
import tempfile

from benchmarks.speed.command import printed_by, script_parser
from sparse_vis.runtime.errors import UserError, command_line
from sparse_vis.runtime.tools import positive

TIMED = "import time; began = time.perf_counter()\n{}print(time.perf_counter() - began)"
OURS = """
import numpy as np, sparse_vis
model, params = sparse_vis.load("scenes-tiny")
print(np.asarray(sparse_vis.encode(model, params, np.zeros((1, 48, 48, 3), np.uint8)).sparse).shape)
"""
TORCH = """
import pathlib, sys, torch
from safetensors.torch import load_file, save_file
from torch import nn
layer = nn.TransformerEncoderLayer(64, 2, 256, 0.0, "gelu", batch_first=True, norm_first=True)
parts = dict(embed=nn.Conv2d(3, 64, 6, 6), blocks=nn.TransformerEncoder(layer, 4, nn.LayerNorm(64)))
model, path = nn.ModuleDict(parts).eval(), pathlib.Path(sys.argv[1])
if not path.exists():
    save_file(model.state_dict(), path)
model.load_state_dict(load_file(path))
with torch.inference_mode():
    patches = model["embed"](torch.zeros(1, 3, 48, 48)).flatten(2).transpose(1, 2)
    tokens = nn.functional.pad(patches, (0, 0, 9, 0))  # CLS and 8 queries
    print(model["blocks"](tokens)[:, 1:9].numpy().shape)
"""


def seconds(program: str, *arguments: str) -> float:
    """Wall time of the program in a new Python process."""
    printed = printed_by("-c", TIMED.format(program), *arguments)
    if not printed.startswith("(1, 8, 64)\n"):
        raise UserError(f"a run gave other features ({printed.splitlines()[0]}); correct the benchmark.")
    return float(printed.split()[-1])


def main() -> None:
    parser = script_parser(__spec__, __doc__)
    parser.add_argument("--repeats", type=positive, default=7, metavar="N", help="timed runs (%(default)s)")
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        pairs = [(seconds(OURS), seconds(TORCH, f"{folder}/vit.safetensors")) for _ in range(1 + repeats)][1:]
    ours, torch = map(statistics.median, zip(*pairs, strict=True))
    print(f"first features: sparse_vis {ours:.2f} s, PyTorch {torch:.2f} s, ratio {ours / torch:.2f}")


if __name__ == "__main__":
    command_line(main)
