"""The interface of evaluations: an Encoder turns images into named arrays, which tasks read by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, Num

from sparse_vis.models.encoder import patchify
from sparse_vis.runtime.batches import run_in_batches
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.progress import Progress

AnyArray = Array | np.ndarray

# Names of the features that an encoder may give, and the number of dimensions of each (the batch first).
RANKS = dict(sparse=3, cls=3, dense=3, spatial=3, reconstruction=4, prototype=2, probability=2)
# Name of the mean over each set of tokens.
POOLED = {"sparse": "mean_S", "cls": "cls", "dense": "mean_U"}


@dataclass(frozen=True)
class Encoder:
    """A named function from images to features. Metrics of features that it does not give are absent.

    Features are sparse (B, r, d), S; cls (B, 1, d); dense (B, n, d), U; spatial (B, n, r), L; reconstruction
    (B, h, w, 3), pixels clipped to [0, 1]; prototype (B, r), each token's most likely prototype; probability
    (B, classes), of a model with a classifier.
    """

    name: str  # in the tables of results
    gives: tuple[str, ...]  # names of the features that it gives
    # (images, names) → dict with at least these features, all of them in `gives`; images are (B, H, W, 3),
    # uint8 or float in [0, 1]. It may be jitted, as it is called with few batch shapes.
    features: Callable[[AnyArray, tuple[str, ...]], dict[str, AnyArray]]
    decode: Callable[[AnyArray, AnyArray], AnyArray] | None = None  # from S and L to a reconstruction
    prototypes: int = 0  # number of them
    about: Mapping = field(default_factory=dict)  # all that determines its numbers (checksums, seed …)
    absent: Mapping[str, str] = field(default_factory=dict)  # feature → why absent, if the user can change it


@dataclass(frozen=True)
class Split:
    """Features of one part of a data set, x (N, f) float, and the class of each row, y (N,) int."""

    x: AnyArray
    y: AnyArray


def encode(
    encoder: Encoder, images: AnyArray, wanted: tuple[str, ...], batch: int, progress: Progress | None = None
) -> dict[str, np.ndarray]:
    """Those of the wanted features that the encoder gives, float32, of any number of images.

    Raises UserError, naming the encoder, if it returns something else.
    """
    wanted = tuple(key for key in wanted if key in encoder.gives)

    def call(rows):
        out = encoder.features(rows, wanted)
        for key in wanted:
            if why := _breach(key, out, len(rows)):
                raise UserError(f"encoder '{encoder.name}' {why}.")
        return {key: out[key] for key in wanted}

    found = run_in_batches(call, batch, images, progress=progress) if wanted else {}
    return {key: np.asarray(found[key], np.float32) for key in wanted}


def _breach(key: str, out: dict[str, AnyArray], rows: int) -> str:
    """In words, what is wrong with an encoder's output, or ""."""
    if key not in RANKS:
        return f"returns the unknown key '{key}'; the known keys are {', '.join(RANKS)}"
    if key not in out:
        return f"declares '{key}' but did not return it; correct the encoder"
    if out[key].ndim == RANKS[key] and len(out[key]) == rows:
        return ""
    shape = f"{RANKS[key]} dimensions and {rows} rows"
    return f"returned '{key}' of shape {out[key].shape}; it must have {shape}"


def pool(features: Mapping[str, AnyArray]) -> dict[str, Float[np.ndarray, "N d"]]:
    """One vector per image and set of tokens ("mean_S", "cls", "mean_U"), from the features of `encode`."""
    there = {name: np.asarray(features[key]) for key, name in POOLED.items() if key in features}
    return {name: tokens.mean(axis=1, dtype=np.float32) for name, tokens in there.items()}


class Regrouped:
    """Regroups rows that arrive in parts of any size into groups of `size`, which share their memory."""

    def __init__(self, size: int):
        self._size, self._filled = size, 0
        self._held: dict[str, np.ndarray] = {}

    def add(self, part: Mapping[str, np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
        """Yield the groups that these rows complete; each is valid until the next is requested."""
        count, start = len(next(iter(part.values()))), 0
        while start < count:
            for name, array in part.items():
                if name not in self._held:
                    self._held[name] = np.empty((self._size, *array.shape[1:]), array.dtype)
                rows = array[start : start + self._size - self._filled]
                self._held[name][self._filled : self._filled + len(rows)] = rows
            self._filled, start = self._filled + len(rows), start + len(rows)
            if self._filled == self._size:
                yield from self.rest()

    def rest(self) -> Iterator[dict[str, np.ndarray]]:
        """Yield the remaining rows, if there are any, as a last group."""
        if self._filled:
            yield {name: array[: self._filled] for name, array in self._held.items()}
        self._filled = 0


def as_unit(images: Num[AnyArray, "B H W 3"]) -> Float[np.ndarray, "B H W 3"]:
    """Images as float32 in [0, 1]."""
    scale = 255.0 if images.dtype == np.uint8 else 1.0
    return np.asarray(images, np.float32) / np.float32(scale)


def patches_of(images: Num[AnyArray, "B H W 3"], patch: int) -> Float[np.ndarray, "B n values"]:
    """The pixels of every patch as one vector, in [0, 1]."""
    return np.asarray(patchify(jnp.asarray(as_unit(images)), patch))


def square_grid(patches: int) -> tuple[int, int]:
    """(rows, columns) of the patches of a square image. Raises UserError if their number is not a square."""
    side = math.isqrt(patches)
    if side * side != patches:
        raise UserError(f"{patches} patches are not a square grid; choose image size and patch that fit.")
    return side, side


def check_labels(what: str, labels: Integer[AnyArray, " labels"], classes: int) -> None:
    """Raise UserError unless all labels are in 0 … classes−1."""
    low, high = int(np.min(labels)), int(np.max(labels))
    if low < 0 or high >= classes:
        raise UserError(
            f"the {what} labels go from {low} to {high}; with classes={classes} they must lie between 0 "
            f"and {classes - 1}."
        )


def check_labelled(
    what: str, features: Float[AnyArray, "rows f"], labels: Integer[AnyArray, " labels"], classes: int
) -> None:
    """Raise UserError unless a set has rows, one label for each, finite features, and labels in range."""
    if len(features) == 0 or len(features) != len(labels):
        raise UserError(
            f"the {what} set has {len(features)} features but {len(labels)} labels; give one label per "
            "feature row."
        )
    check_labels(what, labels, classes)
    # A float64 sum is finite exactly if all its float32 terms are; np.isfinite would make a large array.
    with np.errstate(invalid="ignore"):
        total = np.sum(np.asarray(features), dtype=np.float64)
    if not np.isfinite(total):
        raise UserError(f"the {what} features contain NaN or infinity; the checkpoint has probably diverged.")
