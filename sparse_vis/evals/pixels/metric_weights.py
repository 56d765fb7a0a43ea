"""Read weight files of the networks of rFID and LPIPS into our modules.

ours                             torch
Mixed_5b/branch1x1/kernel, bias  Mixed_5b.branch1x1.conv.weight and .bn.*, folded into one convolution
convs_3/kernel                   features.8.weight
head_3                           lin3.model.1.weight
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util

from sparse_vis.evals.pixels.inception import Inception
from sparse_vis.evals.pixels.lpips import SMALLEST, Lpips
from sparse_vis.interop.tensors import check_tensors, read_tensors
from sparse_vis.runtime.errors import UserError

INCEPTION = (
    "the Inception-v3 of 2015, pt_inception-2015-12-05-6726825d.pth from "
    "https://github.com/mseitzer/pytorch-fid/releases/tag/fid_weights, or the same file of torch-fidelity, "
    "weights-inception-2015-12-05-6726825d.pth from https://github.com/toshas/torch-fidelity/releases/tag/v0.2.0"
)
ALEXNET = "torchvision's AlexNet, https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
HEADS = (
    "the heads of LPIPS v0.1 for AlexNet, alex.pth from "
    "https://github.com/richzhang/PerceptualSimilarity/tree/master/lpips/weights/v0.1"
)
BATCH_NORM_EPSILON = 1e-3
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")
# The classifier is not used, but its 1008 classes distinguish this file from today's torchvision Inception
# (1000), whose other tensors have the same names and shapes and would give plausible but wrong distances.
_CLASSIFIER = {"fc.weight": (1008, 2048), "fc.bias": (1008,)}
_ALEXNET_INDEX = (0, 3, 6, 8, 10)


def load_inception(path: str | Path) -> tuple[Inception, dict]:
    """Read the 2015 Inception-v3, by which FID is defined.

    Args:
        path: pt_inception-2015-12-05-6726825d.pth, or the same tensors as safetensors.

    Returns:
        The module and its parameters, float32 on the host: `module.apply({"params": params}, images)`.

    Raises:
        UserError: the file is missing, unreadable, or of another network.
    """
    module = Inception()
    shapes = _shapes(module, jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.uint8))
    expected = dict(_CLASSIFIER)
    for name, shape in shapes.items():
        unit, leaf = name.replace("/", ".").rsplit(".", 1)
        if leaf == "kernel":
            expected[f"{unit}.conv.weight"] = _torch_shape(shape)
        else:
            expected |= {f"{unit}.bn.{part}": shape for part in _BATCH_NORM}
    found = _read(path, expected, (r".*\.num_batches_tracked",), INCEPTION)
    params = {}
    for unit in {name.rsplit("/", 1)[0] for name in shapes}:
        params[f"{unit}/kernel"], params[f"{unit}/bias"] = _fold(found, unit.replace("/", "."))
    return module, traverse_util.unflatten_dict(params, sep="/")


def load_lpips(alexnet_path: str | Path, heads_path: str | Path) -> tuple[Lpips, dict]:
    """Read AlexNet and the heads of LPIPS v0.1.

    Heads of v0.0 have the same shapes, so giving them by mistake is not detected.

    Args:
        alexnet_path: alexnet-owt-7be5be79.pth of torchvision, of which the convolutions are used.
        heads_path: alex.pth of the lpips package, version 0.1. Both may be safetensors with the same names.

    Returns:
        The module and its parameters, float32 on the host: `module.apply({"params": params}, x, y)`.

    Raises:
        UserError: a file is missing, unreadable, or of another network.
    """
    module = Lpips()
    pixels = jax.ShapeDtypeStruct((1, SMALLEST, SMALLEST, 3), jnp.float32)
    shapes = _shapes(module, pixels, pixels)
    convs = {_alexnet_name(ours): _torch_shape(shape) for ours, shape in shapes.items() if "/" in ours}
    heads = {_head_name(ours): (1, *shape, 1, 1) for ours, shape in shapes.items() if "/" not in ours}
    found = _read(alexnet_path, convs, (r"classifier\..*",), ALEXNET) | _read(heads_path, heads, (), HEADS)
    params = {}
    for ours, shape in shapes.items():
        array = found[_alexnet_name(ours) if "/" in ours else _head_name(ours)]
        array = array.transpose(2, 3, 1, 0) if len(shape) == 4 else array.reshape(shape)
        params[ours] = array
    return module, traverse_util.unflatten_dict(params, sep="/")


@functools.cache
def _shapes(module: nn.Module, *inputs: jax.ShapeDtypeStruct) -> dict[str, tuple[int, ...]]:
    tree = jax.eval_shape(lambda *x: module.init(jax.random.key(0), *x), *inputs)["params"]
    return {name: leaf.shape for name, leaf in traverse_util.flatten_dict(tree, sep="/").items()}


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape


def _read(
    path: str | Path, expected: Mapping[str, tuple[int, ...]], unused: Iterable[str], source: str
) -> dict[str, np.ndarray]:
    """The checked tensors of a file; errors say which file is expected and where to get it."""
    try:
        return check_tensors(read_tensors(path), expected, unused, path)
    except UserError as error:
        raise UserError(f"{str(error).rstrip('.')} (expected: {source}).") from error


def _fold(found: Mapping[str, np.ndarray], unit: str) -> tuple[np.ndarray, np.ndarray]:
    """Kernel and bias of a convolution with its batch norm folded in, computed in float64."""
    weight = found[f"{unit}.conv.weight"].astype(np.float64)
    gain, shift, mean, variance = (found[f"{unit}.bn.{part}"].astype(np.float64) for part in _BATCH_NORM)
    gain = gain / np.sqrt(variance + BATCH_NORM_EPSILON)
    kernel = weight.transpose(2, 3, 1, 0) * gain
    return kernel.astype(np.float32), (shift - mean * gain).astype(np.float32)


def _alexnet_name(ours: str) -> str:
    module, leaf = ours.split("/")
    index = _ALEXNET_INDEX[int(module.removeprefix("convs_"))]
    return f"features.{index}.{'weight' if leaf == 'kernel' else 'bias'}"


def _head_name(ours: str) -> str:
    return f"lin{ours.removeprefix('head_')}.model.1.weight"
