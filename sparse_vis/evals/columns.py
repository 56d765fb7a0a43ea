"""What is kept of each image (pooled features, scores, ranks; never all of U), and tasks that use these."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int, Num
from ml_collections import ConfigDict
from PIL import Image

from sparse_vis.data.records import Records
from sparse_vis.evals.features import POOLED, AnyArray, as_unit, pool, square_grid
from sparse_vis.evals.maps.localization import best_overlap, foreground_ari, mean_known, token_segments
from sparse_vis.evals.pixels.fid import Moments, at_256, frechet_distance, to_uint8
from sparse_vis.evals.pixels.networks import Networks
from sparse_vis.evals.pixels.psnr_ssim import psnr, ssim
from sparse_vis.evals.task import Bench, Reducer, Result, Task


def _localized(features: dict, records: Records, networks: Networks) -> dict[str, np.ndarray]:
    L = features["spatial"]
    masks = token_segments(L, square_grid(L.shape[1]), records.mask.shape[1:]), records.mask
    return {"fg_ari": foreground_ari(*masks), "best_iou": best_overlap(*masks)}


# Means of tokens, in one Reducer per key, so that an encoder without S still gives those of CLS and U.
TOKEN_MEANS = tuple(Reducer((key,), lambda f, *_, key=key: pool({key: f[key]})) for key in POOLED)
CONCATENATED = Reducer(("sparse",), lambda f, *_: {"concat_S": f["sparse"].reshape(len(f["sparse"]), -1)})
LOCALIZED = Reducer(("spatial",), _localized)
RECONSTRUCTED = Reducer(
    ("reconstruction",), lambda f, records, networks: compared(f["reconstruction"], records.image, networks)
)
RANKED = Reducer(
    ("probability",), lambda f, records, _: {"class_rank": ranks(f["probability"], records.label)}
)
PROTOTYPE = Reducer(("prototype",), lambda f, *_: {"prototype": f["prototype"].astype(np.int32)})


def at_size(images: Float[AnyArray, "N h w 3"], size: int) -> Float[np.ndarray, "N size size 3"]:
    """Square images in [0, 1], resized to `size` pixels if necessary (Pillow's bicubic, in 8 bits)."""
    if images.shape[1:3] == (size, size):
        return np.asarray(images, np.float32)
    resized = [Image.fromarray(x).resize((size, size), Image.Resampling.BICUBIC) for x in to_uint8(images)]
    return np.stack(resized).astype(np.float32) / 255


def compared(
    reconstruction: Float[AnyArray, "N h w 3"], images: Num[np.ndarray, "N H W 3"], networks: Networks
) -> dict[str, np.ndarray]:
    """Columns of reconstructions in [0, 1]: psnr, ssim and, of networks with a file, lpips and inception.

    For PSNR and SSIM, reconstructions are resized to the images' size if they have another (256 for 224 px at
    patch 14). LPIPS and Inception get 8-bit images that passed through `at_256`.
    """
    same, true = at_size(reconstruction, images.shape[1]), as_unit(images)
    found = {"psnr": psnr(same, true), "ssim": ssim(same, true)}
    if networks.about:
        x, y = at_256(to_uint8(reconstruction)), at_256(to_uint8(true))
        found |= {"lpips": networks.lpips(x, y), "inception": networks.inception(x)}
    return {name: array for name, array in found.items() if array is not None}


def localization(columns: dict[str, np.ndarray]) -> dict[str, float]:
    """Means of those columns of LOCALIZED that exist."""
    return {name: mean_known(columns[name]) for name in ("fg_ari", "best_iou") if name in columns}


def ranks(probability: Float[np.ndarray, "N classes"], label: Int[np.ndarray, " N"]) -> Int[np.ndarray, " N"]:
    """Number of classes that are more likely than the true one; -1 for images without a class."""
    true = np.take_along_axis(probability, np.maximum(label, 0)[:, None], axis=1)
    # Ties go to the lower class, as in argmax.
    earlier = (probability == true) & (np.arange(probability.shape[1]) < label[:, None])
    return np.where(label < 0, -1, ((probability > true) | earlier).sum(axis=1)).astype(np.int32)


def quality(
    columns: dict[str, np.ndarray], networks: Networks, true: Callable[[], Moments]
) -> tuple[dict[str, float], dict[str, str]]:
    """PSNR, SSIM, LPIPS and rFID of a set, from the columns of `compared`; and absent metric → reason.

    `true` returns the Inception moments of the original images.
    """
    metrics = {name: float(np.mean(columns[name])) for name in ("psnr", "ssim", "lpips") if name in columns}
    if "inception" in columns:
        found = Moments.empty(columns["inception"].shape[1]).update(columns["inception"])
        metrics["rfid"] = frechet_distance(found, true())
    return metrics, dict(networks.absent)


def _reconstruction(bench: Bench, config: ConfigDict) -> Result:
    networks, test = bench.networks, bench.data.parts["test"]
    metrics, absent = quality(bench.columns("test"), networks, lambda: networks.true_moments(test))
    return Result({"": metrics}, absent)


def _classifier(bench: Bench, config: ConfigDict) -> Result:
    rank = bench.columns(bench.data.labelled[1])["class_rank"]
    known = rank[rank >= 0]
    if not len(known):
        return Result({}, {"classifier": "no test image has a class"})
    return Result({"": {"accuracy": float(np.mean(known == 0)), "top5": float(np.mean(known < 5))}})


LOCALIZATION = Task(
    lambda bench, config: Result({"": localization(bench.columns("test"))}), ("mask",), ("spatial",),
    lambda data: {"test": (LOCALIZED,)},
    lambda config: {"segments": "argmax over tokens of L, interpolated bilinearly"},
)  # fmt: skip
RECONSTRUCTION = Task(
    _reconstruction, (), ("reconstruction",), lambda data: {"test": (RECONSTRUCTED,)},
    lambda config: {"images": "as the encoder sees them"}, networks=True,
)  # fmt: skip
CLASSIFIER = Task(
    _classifier, ("label",), ("probability",), lambda data: {data.labelled[1]: (RANKED,)},
    lambda config: {"classifier": "the model's own, of fine-tuning"},
)  # fmt: skip
