"""Check arguments that should be images; say what is wrong in a sentence with a remedy."""

import os

import jax
import jax.numpy as jnp
import numpy as np

OVERSHOOT = 1e-3  # allowed outside [0, 1]: rounding errors of the caller's scaling
# (Shape, where None is any number; what turns it into (B, H, W, 3)): the first one that fits is proposed.
_RESHAPED = (
    ((None, 3, None, None), "images.transpose(0, 2, 3, 1)"),
    ((None, None, None, 4), "images[..., :3] without its alpha"),
    ((None, None, None, 1), "np.repeat(images, 3, axis=-1) of one channel"),
    ((None, 1, None, None), "np.repeat(images, 3, axis=1).transpose(0, 2, 3, 1)"),
    ((None, 4, None, None), "images[:, :3].transpose(0, 2, 3, 1)"),
    ((None, None, 3), "images[None] for a single one"),
    ((3, None, None), "images.transpose(1, 2, 0)[None] for a single one"),
    ((None, None, 4), "images[None, ..., :3] for a single one without its alpha"),
    ((None, None, 1), "np.repeat(images, 3, axis=-1)[None] for a single one of one channel"),
    ((None, None, None), "np.stack([images] * 3, axis=-1) of grey ones"),
    ((None, None), "np.stack([images] * 3, axis=-1)[None] for a single grey one"),
    ((None, None, None, None, 3), "images.reshape(-1, *images.shape[-3:])"),
)
# Name of a dtype -> what the error proposes.
_CONVERTED = {
    "object": ": they differ in size; np.stack(images) needs one size",
    "uint16": ", e.g. images / 65535",
    "bool": ", e.g. images.astype(np.float32)",
}


def shape_fault(images) -> str:
    """A sentence on what is wrong with the type or shape of a batch of RGB images; "" if it is right."""
    if (shape := getattr(images, "shape", None)) is None:
        return _no_array(images)
    shape = tuple(shape)
    if len(shape) == 4 and shape[-1] == 3:
        return "" if shape[0] else f"images have shape {shape}; give at least one."
    fitting = (how for wrong, how in _RESHAPED if _fits(shape, wrong))
    return f"images have shape {shape}; give (B, H, W, 3) RGB, e.g. {next(fitting, 'np.stack(images)')}."


def _fits(shape: tuple[int, ...], wrong: tuple[int | None, ...]) -> bool:
    return len(shape) == len(wrong) and all(b in (None, a) for a, b in zip(shape, wrong, strict=True))


def _no_array(images) -> str:
    """The sentence for what is not an array: PIL images, paths, other objects, and lists."""
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


def value_fault(images: np.ndarray | jax.Array) -> str:
    """A sentence on a wrong dtype or wrong values of an array; "" if they are right, or for floats in jit."""
    if images.dtype == jnp.uint8:
        return ""
    if not jnp.issubdtype(images.dtype, jnp.floating):
        whole = jnp.issubdtype(images.dtype, jnp.integer)
        other = ", e.g. images.astype(np.uint8) if they reach from 0 to 255" if whole else ""
        remedy = _CONVERTED.get(images.dtype.name, other)
        return f"images have dtype {images.dtype}; give uint8, or float in [0, 1]{remedy}."
    if isinstance(images, jax.core.Tracer):
        return ""
    low, high = float(images.min()), float(images.max())  # NaN if any is
    if low >= -OVERSHOOT and high <= 1 + OVERSHOOT:
        return ""
    if not np.isfinite(low + high):
        return "images hold NaN or infinite numbers; give uint8, or float in [0, 1]."
    if low > -0.5 and high < 1.5:
        remedy = ", e.g. np.clip(images, 0, 1) after a resize"
    elif low >= -OVERSHOOT:
        remedy = f", e.g. images / {255 if high <= 255 else 65535}"
    elif low >= -1 - OVERSHOOT and high <= 1 + OVERSHOOT:
        remedy = ", e.g. (images + 1) / 2 of images in [-1, 1], or np.clip(images, 0, 1)"
    else:
        remedy = ", not normalised: the model normalises them itself (undo it with images * std + mean)"
    return f"images reach from {low:.4g} to {high:.4g}; give uint8, or float in [0, 1]{remedy}."
