"""The one contract of evaluation: an encoder turns images into named arrays; the rest reads those names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Array, Float, Integer

from sparse_vis.errors import UserError

AnyArray = Array | np.ndarray

# The names an encoder may return, and the number of dimensions of each array (the batch first).
RANKS = {"sparse": 3, "cls": 3, "dense": 3, "spatial": 3, "reconstruction": 4}
POOLED = ("sparse", "cls", "dense")


@dataclass(frozen=True)
class Encoder:
    """A named function from images to features; what a model cannot give is left out of the dict.

    Attributes:
        name: row of the result table.
        features: images (B, H, W, 3), uint8 or float in [0, 1], to a dict with any of the keys
            sparse (B, r, d), S; cls (B, 1, d); dense (B, n, d), U; spatial (B, n, r), L;
            reconstruction (B, H, W, 3), pixels clipped to [0, 1]. It is called with one batch shape only,
            so it may be jitted. An evaluation whose key is absent has no value for this encoder.
    """

    name: str
    features: Callable[[AnyArray], dict[str, AnyArray]]


@dataclass(frozen=True)
class Split:
    """Labelled features of one part of a data set.

    Attributes:
        x: (N, f) float, one vector per image.
        y: (N,) int, class of each row, 0 … classes−1.
    """

    x: AnyArray
    y: AnyArray


def extract_features(
    encoder: Encoder,
    images: AnyArray,
    batch_size: int,
    reduce: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] | None = None,
) -> dict[str, np.ndarray]:
    """All features of a set of images, computed batch by batch.

    The last batch is filled up with copies of its last image, so that the encoder compiles once.

    Args:
        encoder: see Encoder.
        images: (N, H, W, 3), uint8 or float in [0, 1]; read in slices, so it may be memory-mapped.
        batch_size: images per call of the encoder.
        reduce: applied to each batch before it is kept, for example `pool` where all of U would not fit.

    Returns:
        The encoder's keys (or those of `reduce`), each float32 with N rows.

    Raises:
        UserError: no images, or the encoder breaks its contract.
    """
    if len(images) == 0:
        raise UserError("There are no images to evaluate; give at least one.")
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; it must be at least 1.")
    parts: dict[str, list[np.ndarray]] = {}
    for start in range(0, len(images), batch_size):
        batch = np.asarray(images[start : start + batch_size])
        kept = len(batch)
        padding = [(0, batch_size - kept)] + [(0, 0)] * (batch.ndim - 1)
        # Reading the result at once keeps one batch in flight: many unread ones hang JAX on few cores.
        out = jax.device_get(encoder.features(np.pad(batch, padding, mode="edge")))
        _check_contract(encoder.name, out, batch_size)
        out = {key: np.asarray(value[:kept], np.float32) for key, value in out.items()}
        for key, value in (reduce(out) if reduce else out).items():
            parts.setdefault(key, []).append(value)
    return {key: np.concatenate(values) for key, values in parts.items()}


def _check_contract(name: str, out: dict[str, np.ndarray], batch_size: int) -> None:
    for key, value in out.items():
        if key not in RANKS:
            raise UserError(
                f"Encoder '{name}' returned the unknown key '{key}'; known are {', '.join(RANKS)}."
            )
        if value.ndim != RANKS[key] or len(value) != batch_size:
            raise UserError(
                f"Encoder '{name}' returned '{key}' of shape {value.shape}; "
                f"it must have {RANKS[key]} dimensions and {batch_size} rows."
            )


def pool(features: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One vector per image: mean S ("sparse"), CLS ("cls") and mean U ("dense"), as far as present.

    Args:
        features: as from `extract_features`, tokens on axis 1.

    Returns:
        dict of (N, d) float32 arrays; keys that are not token sets are dropped.
    """
    return {key: features[key].mean(axis=1, dtype=np.float32) for key in POOLED if key in features}


def raw_pixels() -> Encoder:
    """The baseline "pixels": the whole image is one dense token, so its pooled feature is the flat image."""

    def features(images: AnyArray) -> dict[str, AnyArray]:
        scale = 255.0 if images.dtype == np.uint8 else 1.0
        flat = np.asarray(images, np.float32).reshape(len(images), 1, -1)
        return {"dense": flat / np.float32(scale)}

    return Encoder(name="pixels", features=features)


def check_labels(what: str, labels: Integer[AnyArray, " labels"], classes: int) -> None:
    """Raises a UserError unless all labels, of which there is at least one, lie in 0 … classes−1."""
    low, high = int(np.min(labels)), int(np.max(labels))
    if low < 0 or high >= classes:
        raise UserError(
            f"The {what} labels go from {low} to {high}; with classes={classes} they must lie between 0 and "
            f"{classes - 1}."
        )


def check_labelled(
    what: str, features: Float[AnyArray, "rows f"], labels: Integer[AnyArray, " labels"], classes: int
) -> None:
    """Raises a UserError unless pooled features and class labels can be used by a probe.

    Args:
        what: name of the set for the message, for example "train".
        features: (N, f) pooled features.
        labels: (N,) class of each row, 0 … classes−1.
        classes: number of classes.

    Raises:
        UserError: no rows, unequal lengths, labels out of range, or features that are not finite.
    """
    if len(features) == 0 or len(features) != len(labels):
        raise UserError(
            f"The {what} set has {len(features)} features and {len(labels)} labels; give as many of each."
        )
    check_labels(what, labels, classes)
    # A float64 sum is finite exactly if every float32 term is, and needs no array of flags.
    with np.errstate(invalid="ignore"):
        total = np.sum(np.asarray(features), dtype=np.float64)
    if not np.isfinite(total):
        raise UserError(f"The {what} features hold NaN or infinity; look for a diverged checkpoint.")
