"""Read the networks of rFID and LPIPS, if the user gives their files.

ours                             torch
Mixed_5b/branch1x1/kernel, bias  Mixed_5b.branch1x1.conv.weight and .bn.*, folded into one convolution
convs_3/kernel                   features.8.weight
head_3                           lin3.model.1.weight
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import traverse_util
from jaxtyping import Float, UInt8

from sparse_vis.evals.dataset import Part
from sparse_vis.evals.pixels.fid import Moments, at_256
from sparse_vis.evals.pixels.inception import Inception
from sparse_vis.evals.pixels.lpips import SMALLEST, Lpips
from sparse_vis.interop.tensors import check_tensors, read_tensors
from sparse_vis.runtime.batches import Devices, run_in_batches
from sparse_vis.runtime.errors import reworded
from sparse_vis.runtime.files import file_sha256
from sparse_vis.runtime.paths import AnyPath, as_path

LARGEST_BATCH = 50  # images per call: Inception's first layers need 5 MB each
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
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")
# The classifier is not used, but its 1008 classes tell this file from today's torchvision Inception (1000
# classes), whose other tensors have the same names and shapes and would give plausible but wrong distances.
_CLASSIFIER = {"fc.weight": (1008, 2048), "fc.bias": (1008,)}
_ALEXNET_INDEX = (0, 3, 6, 8, 10)


class Networks:
    """Inception features and LPIPS distances of images; None from a network whose file does not exist.

    Args:
        inception, alexnet, heads: files, or "". They are read and checked at once; weights go to the device
            when a network is first called. batch_size: images per call, but at most LARGEST_BATCH.

    Attributes:
        absent: metric → why it cannot be measured. about: names and checksums of the existing files.

    Raises:
        UserError: a file that exists cannot be read, or is of another network.
    """

    def __init__(self, inception: str, alexnet: str, heads: str, batch_size: int):
        self.batch_size = min(batch_size, LARGEST_BATCH)
        files = {
            "inception": (inception, INCEPTION), "lpips.alexnet": (alexnet, ALEXNET),
            "lpips.heads": (heads, HEADS),
        }  # fmt: skip
        missing = {name: _missing(name, path, what) for name, (path, what) in files.items()}
        why = {"rfid": missing["inception"], "lpips": missing["lpips.alexnet"] or missing["lpips.heads"]}
        self.absent = {metric: reason for metric, reason in why.items() if reason}
        self.about = {name: identity(path) for name, (path, _) in files.items() if not missing[name]}
        self._inception = None if why["rfid"] else _jitted(*load_inception(inception))
        self._lpips = None if why["lpips"] else _jitted(*load_lpips(alexnet, heads))
        self._moments: dict[Part, Moments] = {}

    def inception(self, images: UInt8[np.ndarray, "N 256 256 3"]) -> Float[np.ndarray, "N f"] | None:
        """Pooled features of images that passed through `at_256`."""
        return None if self._inception is None else run_in_batches(self._inception, self.batch_size, images)

    def lpips(
        self, x: UInt8[np.ndarray, "N 256 256 3"], y: UInt8[np.ndarray, "N 256 256 3"]
    ) -> Float[np.ndarray, " N"] | None:
        """Distance of each pair of images that passed through `at_256`."""
        if self._lpips is None:
            return None
        return run_in_batches(self._lpips, self.batch_size, *(np.float32(images) / 255 for images in (x, y)))

    def true_moments(self, part: Part) -> Moments:
        """Moments of the Inception features of a part's own images, computed once."""
        if part not in self._moments:
            found = Moments.empty(2048)
            for some in part.in_shares(self.batch_size, lambda r: {"x": self.inception(at_256(r.image))}):
                found = found.update(some["x"])
            self._moments[part] = found
        return self._moments[part]


def identity(path: str) -> dict[str, str]:
    """Name and checksum of a file."""
    return {"file": as_path(path).name, "sha256": file_sha256(as_path(path))}


def _missing(name: str, path: str, what: str) -> str:
    if not path:
        return f"config.eval.{name} is not set; give {what}"
    return "" if as_path(path).is_file() else f"config.eval.{name}={path} does not exist; give {what}"


def _jitted(module: nn.Module, params: dict) -> Callable:
    call = jax.jit(lambda params, *arrays: module.apply({"params": params}, *arrays))
    placed = functools.cache(lambda: Devices().everywhere(params))
    return lambda *arrays: call(placed(), *arrays)


def load_inception(path: str | AnyPath) -> tuple[Inception, dict]:
    """Read the 2015 Inception-v3 from its .pth file, or from the same tensors as safetensors.

    Returns the module and its parameters, float32 on the host. Raises UserError if the file is missing,
    unreadable, or of another network.
    """
    module = Inception()
    shapes = _shapes(module, jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.uint8))
    units = {name.rsplit("/", 1)[0]: shape for name, shape in shapes.items() if name.endswith("/kernel")}
    expected = dict(_CLASSIFIER)
    for unit, shape in units.items():
        name = unit.replace("/", ".")
        expected |= {f"{name}.bn.{part}": shape[-1:] for part in _BATCH_NORM}
        expected[f"{name}.conv.weight"] = _torch_shape(shape)
    found, params = _read(path, expected, (r".*\.num_batches_tracked",), INCEPTION), {}
    for unit in units:
        # The batch norm is folded into the convolution, in float64.
        name = unit.replace("/", ".")
        tensors = (f"{name}.conv.weight", *(f"{name}.bn.{part}" for part in _BATCH_NORM))
        kernel, gain, shift, mean, variance = (found[tensor].astype(np.float64) for tensor in tensors)
        gain = gain / np.sqrt(variance + 1e-3)
        params[f"{unit}/kernel"] = (kernel.transpose(2, 3, 1, 0) * gain).astype(np.float32)
        params[f"{unit}/bias"] = (shift - mean * gain).astype(np.float32)
    return module, traverse_util.unflatten_dict(params, sep="/")


def load_lpips(alexnet_path: str | AnyPath, heads_path: str | AnyPath) -> tuple[Lpips, dict]:
    """Read torchvision's AlexNet, whose convolutions are used, and the heads of LPIPS v0.1.

    Both may be safetensors with the same names. Heads of v0.0 are not noticed, as they have the same shapes.
    Returns and raises as `load_inception`.
    """
    module = Lpips()
    pixels = jax.ShapeDtypeStruct((1, SMALLEST, SMALLEST, 3), jnp.float32)
    convs, heads = {}, {}
    for ours, shape in _shapes(module, pixels, pixels).items():
        if ours.startswith("head_"):
            heads[ours] = f"lin{ours.removeprefix('head_')}.model.1.weight", (1, *shape, 1, 1)
        else:
            unit, leaf = ours.removeprefix("convs_").split("/")
            name = f"features.{_ALEXNET_INDEX[int(unit)]}.{'weight' if leaf == 'kernel' else 'bias'}"
            convs[ours] = name, _torch_shape(shape)
    found = _read(alexnet_path, dict(convs.values()), (r"classifier\..*",), ALEXNET)
    found |= _read(heads_path, dict(heads.values()), (), HEADS)
    params = {ours: found[name].reshape(-1) for ours, (name, _) in heads.items()}
    for ours, (name, shape) in convs.items():
        params[ours] = found[name].transpose(2, 3, 1, 0) if len(shape) == 4 else found[name]
    return module, traverse_util.unflatten_dict(params, sep="/")


@functools.cache
def _shapes(module: nn.Module, *inputs: jax.ShapeDtypeStruct) -> dict[str, tuple[int, ...]]:
    tree = jax.eval_shape(lambda *x: module.init(jax.random.key(0), *x), *inputs)["params"]
    return {name: leaf.shape for name, leaf in traverse_util.flatten_dict(tree, sep="/").items()}


def _torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape


def _read(
    path: str | AnyPath, expected: Mapping[str, tuple[int, ...]], unused: Iterable[str], source: str
) -> dict[str, np.ndarray]:
    """The checked tensors of a file. Errors say which file is expected and where to get it."""
    with reworded(lambda sentence: f"{sentence.rstrip('.')} (expected: {source})."):
        return check_tensors(read_tensors(path), expected, unused, path)
