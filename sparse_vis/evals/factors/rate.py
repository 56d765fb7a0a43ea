"""Rate and distortion: bytes per image of (S, L) in several codings, compared with dense U of equal size."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from sparse_vis.evals.classes.linear import SweepProtocol, sweep
from sparse_vis.evals.dataset import no_classes
from sparse_vis.evals.factors.factorization import decode_factors, factors
from sparse_vis.evals.features import AnyArray, as_unit, patches_of, square_grid
from sparse_vis.evals.pixels.psnr_ssim import psnr
from sparse_vis.evals.task import Bench, Result, Task
from sparse_vis.ops.moments import Moments

TRAIN_IMAGES, TEST_IMAGES = 1000, 500  # at most, evenly spread
FITTED = 200  # most training images to which the principal components of U are fitted
RIDGE = 1e-3  # of the linear decoder, relative to the mean variance of a feature


class Coded(NamedTuple):
    """Arrays after a lossy coding."""

    values: np.ndarray  # decoded, float32
    bytes: int  # per image, without a header


def as_float(x: Float[AnyArray, "N rows columns"], dtype: str) -> Coded:
    """x rounded to "float32" or "float16"."""
    coded = np.asarray(x).astype(dtype)
    return Coded(coded.astype(np.float32), coded[0].nbytes)


def as_int8(x: Float[AnyArray, "N rows columns"]) -> Coded:
    """x in int8, each row with a float16 scale, its largest magnitude / 127."""
    x = np.asarray(x, np.float32)
    # The scale is rounded up, so that no value divided by it exceeds 127.
    scale = np.nextafter((np.abs(x).max(-1, keepdims=True) / 127).astype(np.float16), np.float16(np.inf))
    scale = scale.astype(np.float32)
    integers = np.rint(x / scale).astype(np.int8)
    return Coded(integers * scale, x[0].size + 2 * x.shape[1])


def top_k(L: Float[AnyArray, "N n r"], k: int) -> Coded:
    """The k ≤ r ≤ 256 largest entries of every row: a byte for the token and one for the weight in 1/255.

    The decoded rows sum to one.
    """
    L = np.asarray(L, np.float32)
    kept = np.argsort(-L, axis=-1, kind="stable")[..., :k]
    weights = np.take_along_axis(L, kept, axis=-1)
    integers = np.rint(255 * weights / weights.sum(-1, keepdims=True))
    sparse = np.zeros_like(L)
    np.put_along_axis(sparse, kept, integers / integers.sum(-1, keepdims=True), axis=-1)
    return Coded(sparse, 2 * k * L.shape[1])


def codings(S: Float[AnyArray, "N r d"], L: Float[AnyArray, "N n r"]) -> dict[str, tuple[Coded, Coded]]:
    """Name -> (S, L) in float32, float16, int8, and int8 S with the 4, 2 or 1 largest entries of L's rows."""
    S8 = as_int8(S)
    out = {name: (as_float(S, name), as_float(L, name)) for name in ("float32", "float16")}
    out["int8"] = (S8, as_int8(L))
    return out | {f"int8, top {k}": (S8, top_k(L, k)) for k in (4, 2, 1) if k < L.shape[-1]}


class DenseCode(NamedTuple):
    """Mean and orthonormal principal components of dense features."""

    mean: Float[np.ndarray, " d"]
    components: Float[np.ndarray, "k d"]

    def coded(self, U: Float[AnyArray, "N n d"]) -> Coded:
        """U projected to the components and coded by `as_int8`."""
        code = as_int8((np.asarray(U, np.float32) - self.mean) @ self.components.T)
        return Coded(code.values @ self.components + self.mean, code.bytes)


def dense_code(train_U: Float[AnyArray, "N n d"], budget: int) -> DenseCode | None:
    """As many principal components of U as fit a budget of bytes per image; None if not even one fits.

    The components, which all images share, are not counted.
    """
    count = budget // train_U.shape[1] - 2  # n rows of count int8 and a float16 scale
    if count < 1:
        return None
    found = Moments.empty(train_U.shape[-1]).update(train_U)
    return DenseCode(found.mean.astype(np.float32), found.components(count).T.astype(np.float32))


def linear_psnr(
    train: Float[AnyArray, "N n d"],
    train_images: UInt8[np.ndarray, "N H W 3"],
    test: Float[AnyArray, "M n d"],
    test_images: UInt8[np.ndarray, "M H W 3"],
) -> float:
    """Mean PSNR (dB) of test images if ridge regression predicts each patch's pixels from its feature.

    U and Z get the same kind of decoder, fitted in closed form. Images are square, and filled by the patches.
    """
    side = square_grid(train.shape[1])[0]
    patch = train_images.shape[1] // side
    x = np.asarray(train, np.float64).reshape(-1, train.shape[-1])
    y = patches_of(train_images, patch).astype(np.float64).reshape(len(x), -1)
    mean_x, mean_y = x.mean(0), y.mean(0)
    x -= mean_x
    products = x.T @ x
    products += np.eye(len(products)) * (RIDGE * np.trace(products) / len(products) + 1e-12)
    weights = np.linalg.solve(products, x.T @ (y - mean_y))
    pixels = (np.asarray(test, np.float64) - mean_x) @ weights + mean_y
    pixels = pixels.reshape(-1, side, side, patch, patch, 3).transpose(0, 1, 3, 2, 4, 5)
    true = as_unit(test_images)[:, : side * patch, : side * patch]
    return float(np.mean(psnr(np.clip(pixels.reshape(true.shape), 0, 1), true)))


def _measure(bench: Bench, config: ConfigDict) -> Result:
    counts = zip(bench.data.labelled, (TRAIN_IMAGES, TEST_IMAGES), strict=True)
    train, test = (factors(bench, name, count, "dense") for name, count in counts)
    images, size = (train["image"], test["image"]), test["image"].shape[1]
    probe, why = SweepProtocol(seed=bench.seed), "its images do not have one class each"
    if "label" in train and "label" in test:
        why = no_classes(train["label"], test["label"], probe.least_rows)

    def accuracy(x: AnyArray, test_x: AnyArray) -> dict[str, float]:
        if why:
            return {}
        (x, y), (test_x, test_y) = (
            (tokens.mean(axis=1)[part["label"] >= 0], part["label"][part["label"] >= 0])
            for tokens, part in ((x, train), (test_x, test))
        )
        found = sweep({"x": x}, y, {"x": test_x}, test_y, classes=bench.data.classes, protocol=probe)
        return {"accuracy": found.chosen.accuracy}

    def of_dense(x: AnyArray, test_x: AnyArray, size: int) -> dict[str, float | int]:
        row = {"psnr_linear": linear_psnr(x, images[0], test_x, images[1]), **accuracy(x, test_x)}
        return {"U_bytes": size, **{f"U_{key}": value for key, value in row.items()}}

    metrics: dict[str, dict[str, float | int]] = {}
    train_codings = codings(train["sparse"], train["spatial"])
    for name, (S, L) in codings(test["sparse"], test["spatial"]).items():
        train_S, train_L = (coded.values for coded in train_codings[name])
        row = metrics[name] = {"bytes": S.bytes + L.bytes}
        if bench.encoder.decode is not None:
            pixels = decode_factors(bench, S.values, L.values, size)
            row["psnr"] = float(np.mean(psnr(pixels, as_unit(images[1]))))
        row["psnr_linear"] = linear_psnr(train_L @ train_S, images[0], L.values @ S.values, images[1])
        row |= accuracy(train_S, S.values)
        dense = dense_code(train["dense"][:: -(-len(train["dense"]) // FITTED)], row["bytes"])
        if dense is not None:
            U = dense.coded(test["dense"])
            row |= of_dense(dense.coded(train["dense"]).values, U.values, U.bytes)
    metrics["U, float32"] = of_dense(train["dense"], test["dense"], test["dense"][0].nbytes)
    absent = {"accuracy": why} if why else {}
    if bench.encoder.decode is None:
        absent["psnr"] = bench.encoder.absent.get("reconstruction", "it has no decoder")
    return Result(metrics, absent)


RATE = Task(
    _measure, (), ("spatial",), lambda data: {},
    lambda config: {
        "train_images": TRAIN_IMAGES, "test_images": TEST_IMAGES, "images_of_components": FITTED,
        "ridge": RIDGE, "accuracy": "the sweep's, of mean S or mean U after coding, one feature",
    },
)  # fmt: skip
