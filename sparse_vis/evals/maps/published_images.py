"""What the published probes share: random crops in training, centre crops in the test, AdamW."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import optax
from jaxtyping import Float32, Int

from sparse_vis.data.cut import Cut, centre_cut
from sparse_vis.data.records import in_batches
from sparse_vis.evals.dataset import Part
from sparse_vis.runtime.batches import in_shares
from sparse_vis.train.optimizer import make_optimizer
from sparse_vis.views.crops import UNIFORMS, box_of

ASPECT, FLIP = (3 / 4, 4 / 3), 0.5
# Images and optimizer of every published probe, for evaluation.json.
ABOUT = {
    "resize": "bicubic a=-0.75, align_corners=True, no antialiasing, clipped to [0, 1]",
    "crop_aspect": ASPECT, "flip": FLIP, "test": "short side 256/224 of the size, centre",
}  # fmt: skip
OPTIMIZER = {"schedule": "constant", "betas": (0.9, 0.999), "eps": 1e-8}
Maker = Callable[[int, int, int], Cut]  # (height, width, index in the part) of an image → its Cut
Keep = Callable[[dict[str, Any], Cut], Any]  # (record with decoded image, its Cut) → what to keep of it
Squares = tuple[Float32[np.ndarray, "B size size 3"], list[Any]]  # crops in [0, 1], what was kept of each


def random_cuts(size: int, scale: tuple[float, float], *key: int) -> Maker:
    """Random crops of an area in `scale`, resized to `size` pixels, and flipped with probability ½.

    They depend only on (key, index of the image); key is e.g. seed and epoch.
    """

    def make(height: int, width: int, number: int) -> Cut:
        uniform = np.random.default_rng((*key, number)).random(UNIFORMS + 1, np.float32)
        box = tuple(int(side) for side in box_of(uniform[1:], height, width, scale, ASPECT))
        return Cut(box, (size, size), (0, 0), size, bool(uniform[0] < FLIP))

    return make


def centre_cuts(part: Part) -> Maker:
    """Centre crops of the part's size."""
    return lambda height, width, number: centre_cut(height, width, part.size, part.short_side)


def squares(
    part: Part, make: Maker, rows: Int[np.ndarray, " N"], batch_size: int, keep: Keep
) -> Iterator[Squares]:
    """Yield batches of square crops of these rows of the part, and the results of `keep`."""

    def load(rows: np.ndarray) -> tuple[np.ndarray, list[Any]]:
        images, kept = [], []
        for row in rows:
            record = part.record(part.indices[row])
            cut = make(*record["image"].shape[:2], int(row))
            images.append(cut.image(record["image"]))
            kept.append(keep(record, cut))
        return np.stack(images), kept

    return in_batches(load, rows, batch_size, part.threads)


def squares_in_shares(
    part: Part, make: Maker, rows: Int[np.ndarray, " N"], batch_size: int, keep: Keep, compute: Callable
) -> Iterator[dict[str, np.ndarray]]:
    """The results of `compute` for all `squares`, in order; each process reads and computes its share."""
    own = functools.partial(squares, part, make, batch_size=batch_size, keep=keep)
    return in_shares(len(rows), batch_size, lambda share: own(rows[share]), lambda batch: compute(*batch))


def label(record: dict[str, Any], cut: Cut) -> int:
    """The class of a record, -1 if it has none."""
    return record.get("label", -1)


def epoch(
    part: Part, scale: tuple[float, float], seed: int, number: int
) -> tuple[Maker, Int[np.ndarray, " N"]]:
    """The random crops of the epoch of this number, and its order of the part's rows."""
    order = np.random.default_rng((seed, number)).permutation(len(part))
    return random_cuts(part.size, scale, seed, number), order


def adamw(protocol: Any) -> optax.GradientTransformation:
    """AdamW with a protocol's (constant) learning_rate, weight_decay and gradient clip."""
    rate = optax.constant_schedule(protocol.learning_rate)
    return make_optimizer(rate, weight_decay=protocol.weight_decay, b1=0.9, b2=0.999, clip=protocol.clip)


def departures(protocol: Any) -> dict[str, dict]:
    """Fields of a protocol that differ from their defaults, which are the released values."""
    return {
        field.name: {"released": field.default, "here": getattr(protocol, field.name)}
        for field in dataclasses.fields(protocol)
        if getattr(protocol, field.name) != field.default
    }
