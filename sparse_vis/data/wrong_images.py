"""Check arguments that should be images; say what is wrong in a sentence with a remedy."""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp
import numpy as np

OVERSHOOT = 1e-3  # allowed beyond [0, 1]: rounding errors of the caller's scaling


def shape_fault(images) -> str:
    """Why the type or shape is not that of a batch of RGB images; "" if it is."""
    if (shape := getattr(images, "shape", None)) is None:
        return _no_array(images)
    shape = tuple(shape)
    if len(shape) == 4 and shape[-1] == 3:
        return "" if shape[0] else f"images have shape {shape}; give at least one."
    return f"images have shape {shape}; give (B, H, W, 3) RGB, e.g. {_reshaped(shape)}."


def _no_array(images) -> str:
    """The sentence for PIL images, paths, other objects, and lists of these or of arrays."""
    several = isinstance(images, list | tuple) and len(images) > 0
    first = images[0] if several else images
    what = f"images are a {type(images).__name__}" + (f" of {type(first).__name__}" if several else "")
    if isinstance(first, str | os.PathLike):
        one, name = 'np.asarray(PIL.Image.open(path).convert("RGB"))', "path"
    elif hasattr(first, "convert"):  # a PIL image
        one, name = 'np.asarray(image.convert("RGB"))', "image"
    else:
        return f"{what}; give an array (B, H, W, 3), e.g. np.stack(images)."
    whole = f"np.stack([{one} for {name} in images])" if several else f"{one}[None]"
    return f"{what}; give an array (B, H, W, 3), e.g. {whole}."


def _reshaped(shape: tuple[int, ...]) -> str:
    """An expression that turns an array of this shape into (B, H, W, 3)."""
    if len(shape) == 4:
        first, last = shape[1], shape[-1]
        if first == 3:
            return "images.transpose(0, 2, 3, 1)"
        if last == 4:
            return "images[..., :3] without its alpha"
        if last == 1:
            return "np.repeat(images, 3, axis=-1) of one channel"
        if first in (1, 4):
            single = "np.repeat(images, 3, axis=1)" if first == 1 else "images[:, :3]"
            return f"{single}.transpose(0, 2, 3, 1)"
    if len(shape) == 3:
        if shape[-1] == 3:
            return "images[None] for a single one"
        if shape[0] == 3:
            return "images.transpose(1, 2, 0)[None] for a single one"
        if shape[-1] == 4:
            return "images[None, ..., :3] for a single one without its alpha"
        if shape[-1] == 1:
            return "np.repeat(images, 3, axis=-1)[None] for a single one of one channel"
        return "np.stack([images] * 3, axis=-1) of grey ones"
    if len(shape) == 2:
        return "np.stack([images] * 3, axis=-1)[None] for a single grey one"
    if len(shape) > 4 and shape[-1] == 3:
        return "images.reshape(-1, *images.shape[-3:])"
    return "np.stack(images)"


def value_fault(images: np.ndarray | jax.Array) -> str:
    """Why an array's dtype or values are not those of pixels; "" if they are, or for floats inside jit."""
    if images.dtype == jnp.uint8:
        return ""
    if not jnp.issubdtype(images.dtype, jnp.floating):
        remedy = _remedy(images.dtype.name)
        return f"images have dtype {images.dtype}; give uint8, or float in [0, 1]{remedy}."
    if isinstance(images, jax.core.Tracer):
        return ""
    low, high = float(images.min()), float(images.max())  # NaN if any is
    if low >= -OVERSHOOT and high <= 1 + OVERSHOOT:
        return ""
    if not np.isfinite(low + high):
        return "images hold NaN or infinite numbers; give uint8, or float in [0, 1]."
    if low > -0.5 and high < 1.5:
        remedy = ", e.g. np.clip(images, 0, 1) of what a resize made"
    elif low >= -OVERSHOOT:
        remedy = f", e.g. images / {255 if high <= 255 else 65535}"
    elif low >= -1 - OVERSHOOT and high <= 1 + OVERSHOOT:
        remedy = ", e.g. (images + 1) / 2 of images in [-1, 1], or np.clip(images, 0, 1)"
    else:
        remedy = " without a normalisation, which happens inside (undo it: images * std + mean)"
    return f"images reach from {low:.4g} to {high:.4g}; give uint8, or float in [0, 1]{remedy}."


def _remedy(dtype: str) -> str:
    if dtype == "object":
        return ": they differ in size; np.stack(images) needs one size"
    if dtype == "uint16":
        return ", e.g. images / 65535"
    if dtype == "bool":
        return ", e.g. images.astype(np.float32)"
    if dtype.startswith(("int", "uint")):
        return ", e.g. images.astype(np.uint8) if they reach from 0 to 255"
    return ""
