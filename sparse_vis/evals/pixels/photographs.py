"""How well photographs of the package, larger than the images of training, are reconstructed."""

from __future__ import annotations

import hashlib

import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from sparse_vis.data import examples
from sparse_vis.evals.columns import at_size
from sparse_vis.evals.features import as_unit, encode, square_grid
from sparse_vis.evals.pixels.psnr_ssim import psnr, ssim
from sparse_vis.evals.task import Bench, Result, Task
from sparse_vis.runtime.paths import AnyPath

SIDE = 240  # of the photographs in pixels, rounded down to whole patches
MOST = 48  # most patches along a side; memory grows with its fourth power


def _images(config: ConfigDict) -> UInt8[np.ndarray, "N H W 3"]:
    patch = config.model.patch
    across = min(max(SIDE // patch, 1), MOST)
    return np.stack(list(examples.photographs(across * patch).values()))


def _measure(bench: Bench, config: ConfigDict) -> Result:
    images = _images(config)
    found = encode(bench.encoder, images, ("reconstruction",), len(images))["reconstruction"]
    x, y = at_size(found, images.shape[1]), as_unit(images)
    return Result({"": {"psnr": float(np.mean(psnr(x, y))), "ssim": float(np.mean(ssim(x, y)))}})


def draw(bench: Bench, config: ConfigDict, path: AnyPath) -> None:
    """Save a picture (PNG) of the photographs with reconstructions and token maps."""
    from sparse_vis.viz import figures as viz  # imports matplotlib

    images = _images(config)
    found = encode(bench.encoder, images, ("reconstruction", "spatial"), len(images))
    L = found["spatial"]
    viz.token_sheet(images, found["reconstruction"], L, square_grid(L.shape[1])).savefig(
        path, dpi=200, format="png"
    )


def _protocol(config: ConfigDict) -> dict:
    images = _images(config)
    return {"size": images.shape[1], "images_sha256": hashlib.sha256(images.tobytes()).hexdigest()}


PHOTOGRAPHS = Task(
    _measure, (), ("reconstruction",), lambda data: {}, _protocol, picture=("photographs.png", draw)
)
