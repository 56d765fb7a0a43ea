"""Encoders without a model: baselines that a model must beat."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sparse_vis.evals.dataset import Part
from sparse_vis.evals.features import AnyArray, Encoder
from sparse_vis.models.encoder import patchify
from sparse_vis.ops.moments import Moments

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
        found = Moments.empty(3 * patch * patch)
        for records in chosen.batches(100):
            found = found.update(patches_of(records.image, patch))
        return found.mean.astype(np.float32), found.components(width).astype(np.float32)

    def features(images, wanted):
        del wanted
        mean, basis = components()
        return {"dense": (patches_of(images, patch) - mean) @ basis}

    about = {"baseline": "pca", "patch": patch, "components": width, "images": len(chosen)}
    return Encoder("pca", ("dense",), features, about=about)
