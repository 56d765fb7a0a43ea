"""Rate and distortion on a data set: each coding of (S, L), compared with dense U of equal size."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from sparse_vis.evals.classes.linear import sweep
from sparse_vis.evals.classes.logistic import SweepProtocol
from sparse_vis.evals.dataset import no_classes
from sparse_vis.evals.factors.factorization_task import decode_all, factors, few
from sparse_vis.evals.factors.rate import codings, dense_code
from sparse_vis.evals.features import AnyArray, as_unit, patches_of, square_grid
from sparse_vis.evals.pixels.reconstruction import psnr
from sparse_vis.evals.task import Bench, Result, Task

TRAIN_IMAGES, TEST_IMAGES = 1000, 500  # at most, evenly spread
FITTED = 200  # most training images on which the principal components of U are fitted
RIDGE = 1e-3  # of the linear decoder, relative to the mean variance of a feature


def linear_psnr(
    train: Float[AnyArray, "N n d"],
    train_images: UInt8[np.ndarray, "N H W 3"],
    test: Float[AnyArray, "M n d"],
    test_images: UInt8[np.ndarray, "M H W 3"],
) -> float:
    """Mean PSNR (dB) of test images if ridge regression predicts each patch's pixels from its feature.

    The same decoder for all dense features, fitted in closed form, so that it favours neither U nor Z.

    Args:
        train, test: one feature per patch. train_images, test_images: square, filled by the patches.
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
    train, test = (
        factors(bench, few(bench.data.parts[name], count), "dense")
        for name, count in zip(bench.data.labelled, (TRAIN_IMAGES, TEST_IMAGES), strict=True)
    )
    parts = train, test
    images, size = [part["image"] for part in parts], test["image"].shape[1]

    probe = SweepProtocol(seed=bench.seed)
    why = (
        no_classes(train["label"], test["label"], probe.least_rows)
        if "label" in train and "label" in test
        else "its images have no class each"
    )

    def accuracy(x: AnyArray, test_x: AnyArray) -> dict[str, float]:
        if why:
            return {}
        (x, y), (test_x, test_y) = (
            (tokens.mean(axis=1)[part["label"] >= 0], part["label"][part["label"] >= 0])
            for tokens, part in ((x, train), (test_x, test))
        )
        found = sweep({"x": x}, y, {"x": test_x}, test_y, classes=bench.data.classes, protocol=probe)
        return {"accuracy": found.chosen.accuracy}

    def quality(x: AnyArray, test_x: AnyArray) -> dict[str, float]:
        return {"psnr_linear": linear_psnr(x, images[0], test_x, images[1]), **accuracy(x, test_x)}

    metrics: dict[str, dict[str, float | int]] = {}
    coded = [codings(part["sparse"], part["spatial"]) for part in parts]
    for name, (S, L) in coded[1].items():
        train_S, train_L = coded[0][name]
        row: dict[str, float | int] = {"bytes": S.bytes + L.bytes}
        if bench.encoder.decode is not None:
            pixels = decode_all(bench, S.values, L.values, size)
            row["psnr"] = float(np.mean(psnr(pixels, as_unit(images[1]))))
        row["psnr_linear"] = linear_psnr(
            train_L.values @ train_S.values, images[0], L.values @ S.values, images[1]
        )
        row |= accuracy(train_S.values, S.values)
        dense = dense_code(train["dense"][:: -(-len(train["dense"]) // FITTED)], S.bytes + L.bytes)
        if dense is not None:
            U = [dense.coded(part["dense"]) for part in parts]
            row["U_bytes"] = U[1].bytes
            row |= {f"U_{key}": value for key, value in quality(U[0].values, U[1].values).items()}
        metrics[name] = row
    whole = quality(train["dense"], test["dense"])
    metrics["U, float32"] = {
        "U_bytes": test["dense"][0].nbytes, **{f"U_{key}": value for key, value in whole.items()},
    }  # fmt: skip
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
