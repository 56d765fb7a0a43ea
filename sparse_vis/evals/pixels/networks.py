"""The networks of rFID and LPIPS, if the user gives their files."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import Float, UInt8

from sparse_vis.evals.dataset import Part
from sparse_vis.evals.features import AnyArray
from sparse_vis.evals.pixels.fid import Moments, image_moments, protocol_crop
from sparse_vis.evals.pixels.metric_weights import ALEXNET, HEADS, INCEPTION, load_inception, load_lpips
from sparse_vis.runtime.files import file_sha256

LARGEST_BATCH = 50  # images per call: Inception's first layers need 5 MB each


class Networks:
    """Inception features and LPIPS distances of images; a network without its file gives None.

    The files are read and checked at once; weights go to the device when a network is first called.

    Args:
        inception: file of the 2015 Inception-v3. alexnet, heads: files of LPIPS. All may be "".
        batch_size: images per call of a network, limited to LARGEST_BATCH.

    Attributes:
        absent: metric -> why it cannot be measured. about: names and checksums of the existing files.

    Raises:
        UserError: an existing file is not of that network.
    """

    def __init__(self, inception: str, alexnet: str, heads: str, batch_size: int):
        self.batch_size = min(batch_size, LARGEST_BATCH)
        files = {
            "inception": (inception, INCEPTION), "lpips.alexnet": (alexnet, ALEXNET),
            "lpips.heads": (heads, HEADS),
        }  # fmt: skip
        missing = {name: _missing(name, path, what) for name, (path, what) in files.items()}
        lpips = missing["lpips.alexnet"] or missing["lpips.heads"]
        self.absent = {
            metric: why for metric, why in (("rfid", missing["inception"]), ("lpips", lpips)) if why
        }
        self.about = {name: identity(path) for name, (path, _) in files.items() if not missing[name]}
        self._inception = None if missing["inception"] else _jitted(*load_inception(inception))
        self._lpips = None if lpips else _jitted(*load_lpips(alexnet, heads))
        self._moments: dict[Part, Moments] = {}

    def inception(self, images: UInt8[np.ndarray, "N 256 256 3"]) -> Float[np.ndarray, "N 2048"] | None:
        """Pooled features of images that passed through `protocol_crop`."""
        return None if self._inception is None else self._call(self._inception, images)

    def lpips(
        self, x: UInt8[np.ndarray, "N 256 256 3"], y: UInt8[np.ndarray, "N 256 256 3"]
    ) -> Float[np.ndarray, " N"] | None:
        """Distance of each pair of images that passed through `protocol_crop`."""
        if self._lpips is None:
            return None
        return self._call(self._lpips, *(images.astype(np.float32) / 255 for images in (x, y)))

    def true_moments(self, part: Part) -> Moments:
        """Moments of the Inception features of a part's own images, computed once."""
        if part not in self._moments:
            images = (image for records in part.batches(self.batch_size) for image in records.image)
            self._moments[part] = image_moments(self._inception, images, self.batch_size)
        return self._moments[part]

    def _call(self, network: Callable, *arrays: np.ndarray) -> np.ndarray:
        """Call a network in batches of one size, the last one padded with copies."""
        found = []
        for start in range(0, len(arrays[0]), self.batch_size):
            rows = [a[start : start + self.batch_size] for a in arrays]
            lacking = self.batch_size - len(rows[0])
            filled = [np.pad(r, [(0, lacking)] + [(0, 0)] * (r.ndim - 1), mode="edge") for r in rows]
            found.append(np.asarray(network(*filled))[: len(rows[0])])
        return np.concatenate(found)


def at_256(images: Sequence[UInt8[np.ndarray, "H W 3"]] | AnyArray) -> UInt8[np.ndarray, "N 256 256 3"]:
    """`protocol_crop` of each image: the input of rFID and LPIPS."""
    return np.stack([protocol_crop(image) for image in images])


def _missing(name: str, path: str, what: str) -> str:
    if not path:
        return f"config.eval.{name} names no file; give {what}"
    return "" if pathlib.Path(path).is_file() else f"config.eval.{name}={path} does not exist; give {what}"


def identity(path: str) -> dict[str, str]:
    """Name and checksum of a file."""
    return {"file": pathlib.Path(path).name, "sha256": file_sha256(pathlib.Path(path))}


def _jitted(module, params) -> Callable:
    call = jax.jit(lambda params, *arrays: module.apply({"params": params}, *arrays))
    placed = functools.cache(lambda: jax.device_put(params))
    return lambda *arrays: call(placed(), *arrays)
