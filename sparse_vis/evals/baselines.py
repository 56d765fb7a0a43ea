"""Encoders without a model: baselines that a model must beat."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sparse_vis.evals.dataset import Part
from sparse_vis.evals.features import AnyArray, Encoder
from sparse_vis.models.encoder import patchify

PCA_IMAGES = 1000  # most images on which the components are fitted


def as_unit(images: AnyArray) -> Float[np.ndarray, "B H W 3"]:
    """Images as float32 in [0, 1]."""
    scale = 255.0 if images.dtype == np.uint8 else 1.0
    return np.asarray(images, np.float32) / np.float32(scale)


def patches_of(images: AnyArray, patch: int) -> Float[np.ndarray, "B n values"]:
    """The pixels of every patch as one vector, in [0, 1]."""
    return np.asarray(patchify(jnp.asarray(as_unit(images)), patch))


def raw_pixels() -> Encoder:
    """The baseline "pixels": the whole image is one dense token, so its pooled feature is the flat image."""

    def features(images, wanted):
        del wanted
        return {"dense": as_unit(images).reshape(len(images), 1, -1)}

    return Encoder("pixels", ("dense",), features, about={"baseline": "pixels"})


def mean_colour() -> Encoder:
    """The baseline "mean_colour": the best reconstruction of an image by a single colour."""

    def features(images, wanted):
        del wanted
        x = as_unit(images)
        return {"reconstruction": np.broadcast_to(x.mean(axis=(1, 2), keepdims=True), x.shape)}

    return Encoder("mean_colour", ("reconstruction",), features, about={"baseline": "mean_colour"})


def patch_pca(train: Part, patch: int, width: int) -> Encoder:
    """The baseline "pca": dense features are each patch's pixels in principal components of training patches.

    Args:
        train: fitted on at most PCA_IMAGES of its images, evenly spread, at first use.
        patch: side in pixels. width: number of components; at most 3·patch² are used.
    """
    width, chosen = min(width, 3 * patch * patch), train.every(-(-len(train) // PCA_IMAGES))

    @functools.cache
    def components() -> tuple[np.ndarray, np.ndarray]:
        count, total, products = 0, np.zeros(3 * patch * patch), np.zeros((3 * patch * patch,) * 2)
        for records in chosen.batches(100):
            rows = patches_of(records.image, patch).astype(np.float64).reshape(-1, len(total))
            count, total, products = count + len(rows), total + rows.sum(0), products + rows.T @ rows
        mean = total / count
        _, vectors = np.linalg.eigh(products / count - np.outer(mean, mean))
        return mean.astype(np.float32), vectors[:, ::-1][:, :width].astype(np.float32)

    def features(images, wanted):
        del wanted
        mean, basis = components()
        return {"dense": (patches_of(images, patch) - mean) @ basis}

    about = {"baseline": "pca", "patch": patch, "components": width, "images": len(chosen)}
    return Encoder("pca", ("dense",), features, about=about)
