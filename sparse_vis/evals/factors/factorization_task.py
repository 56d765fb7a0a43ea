"""The measures of factorization.py on a data set, with the settings of docs/evaluation.md."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from sparse_vis.evals.columns import at_size
from sparse_vis.evals.dataset import Part, no_classes
from sparse_vis.evals.factors import factorization as measures
from sparse_vis.evals.factors.factorization import Crop
from sparse_vis.evals.features import AnyArray, square_grid
from sparse_vis.evals.task import Bench, Result, Task
from sparse_vis.views.crops import crop_and_flip, sample_box

TRAIN_IMAGES, TEST_IMAGES = 2000, 500  # at most, evenly spread
SCALE, ASPECT = (0.36, 1.0), (3 / 4, 4 / 3)  # of the views, as of the global views in pretraining
NONE = np.zeros(0, np.int32)
SHIFT = 4  # maps are moved right by 1/SHIFT of the grid


@functools.partial(jax.jit, static_argnames="size")
def random_view(key, image, size: int):
    """A random crop of an image, resized to `size`, and its box and flip."""
    box_key, flip_key = jax.random.split(key)
    box = sample_box(box_key, *jnp.asarray(image.shape[:2], jnp.int32), SCALE, ASPECT)
    flip = jax.random.bernoulli(flip_key, np.float32(0.5))
    return crop_and_flip(image, box, flip, size), box, flip


def few(part: Part, count: int) -> Part:
    """At most `count` records of a part, evenly spread."""
    return part.every(-(-len(part) // count))


def factors(bench: Bench, part: Part, *more: str) -> dict[str, np.ndarray]:
    """S, L and further features of all images of a part, with the images and their labels."""
    kept: dict[str, list[np.ndarray]] = {}
    progress = bench.progress("features", len(part))
    for records in part.batches(bench.batch):
        found = bench.encode(records.image, "sparse", "spatial", *more) | {"image": records.image}
        if records.label is not None:
            found["label"] = records.label
        for name, array in found.items():
            kept.setdefault(name, []).append(array)
        progress.add(len(records.image))
    return {name: np.concatenate(arrays) for name, arrays in kept.items()}


def encode_all(bench: Bench, images: AnyArray) -> tuple[np.ndarray, np.ndarray]:
    """S and L of any number of images in memory."""
    parts, progress = [], bench.progress("encoding", len(images))
    for start in range(0, len(images), bench.batch):
        some = np.asarray(images[start : start + bench.batch])
        parts.append(bench.encode(some, "sparse", "spatial"))
        progress.add(len(some))
    return tuple(np.concatenate([part[key] for part in parts]) for key in ("sparse", "spatial"))


def decode_all(bench: Bench, S: AnyArray, L: AnyArray, size: int) -> Float[np.ndarray, "N size size 3"]:
    """Reconstructions from any number of S and L, resized to `size` pixels."""
    found, progress = [], bench.progress("decoding", len(S))
    for start in range(0, len(S), bench.batch):
        rows = [np.asarray(x[start : start + bench.batch], np.float32) for x in (S, L)]
        lacking = bench.batch - len(rows[0])  # padded, so that the decoder compiles once
        filled = [np.pad(x, [(0, lacking), (0, 0), (0, 0)], mode="edge") for x in rows]
        found.append(np.asarray(bench.encoder.decode(*filled))[: len(rows[0])])
        progress.add(len(rows[0]))
    return at_size(np.concatenate(found), size)


def _views(bench: Bench, test: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    S, L, size = test["sparse"], test["spatial"], test["image"].shape[1]
    keys = jax.random.split(jax.random.key(bench.seed), len(S))
    found = [
        jax.device_get(random_view(key, image, size)) for key, image in zip(keys, test["image"], strict=True)
    ]
    view_S, view_L = encode_all(bench, np.stack([view for view, *_ in found]))
    crops = [Crop(*(int(side) for side in box), flip=bool(flip)) for _, box, flip in found]
    same = measures.invariance(S, view_S)
    moved = measures.equivariance(
        L, view_L, measures.matches(S, view_S), crops,
        side=size, patch=size // square_grid(L.shape[1])[0], view_side=size,
    )  # fmt: skip
    return {
        "S of a view": {"value": same["S_same_image"], "compared_with": same["S_other_image"]},
        "L of a view": {"value": moved["L_moved"], "compared_with": moved["L_unmoved"]},
        "L of a view, other crop": {"value": moved["L_moved"], "compared_with": moved["L_other_crop"]},
    }


def _edits(bench: Bench, test: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    S, L, size = test["sparse"], test["spatial"], test["image"].shape[1]
    grid, tokens = square_grid(L.shape[1]), np.arange(len(S)) % S.shape[1]
    shift = (0, max(1, grid[1] // SHIFT))
    moved = np.stack(
        [measures.move_token(own, int(token), shift, grid) for own, token in zip(L, tokens, strict=True)]
    )
    swapped = S.copy()
    swapped[np.arange(len(S)), tokens] = np.roll(S, 1, axis=0)[np.arange(len(S)), tokens]
    out = {}
    for name, edited_S, edited_L in (("moved map", S, moved), ("swapped token", swapped, L)):
        found = measures.edit_fidelity(
            S, L, edited_S, edited_L.astype(np.float32), functools.partial(encode_all, bench),
            lambda *factors: decode_all(bench, *factors, size),
        )  # fmt: skip
        for part in "SL":
            of = {"value": found[f"{part}_edited"], "compared_with": found[f"{part}_before"]}
            out[f"{part} after a {name}"] = of
    return out


def _measure(bench: Bench, config: ConfigDict) -> Result:
    parts, absent = bench.data.parts, {}
    train, test = (
        factors(bench, few(parts[name], n)) for name, n in (("train", TRAIN_IMAGES), ("test", TEST_IMAGES))
    )
    grid = square_grid(test["spatial"].shape[1])
    metrics = _views(bench, test)
    leak = measures.position_leak(
        (train["sparse"], train["spatial"]), (test["sparse"], test["spatial"]), grid
    )
    metrics["position in S (R2)"] = {"value": leak, "compared_with": 0.0}
    (x, y), (test_x, test_y) = _maps_and_labels(bench) if bench.data.single else [(None, NONE)] * 2
    why = no_classes(y, test_y, 2) if bench.data.single else "its images have no class each"
    if why:
        absent["class in L"] = why
    else:
        known, test_known = y >= 0, test_y >= 0
        chance = np.bincount(test_y[test_known]).max() / test_known.sum()
        leak = measures.class_leak(x[known], y[known], test_x[test_known], test_y[test_known])
        metrics["class in L"] = {"value": leak, "compared_with": float(chance)}
    if bench.encoder.decode is None:
        absent["edits"] = bench.encoder.absent.get("reconstruction", "it has no decoder")
    else:
        metrics |= _edits(bench, test)
    return Result(metrics, absent)


def _maps_and_labels(bench: Bench) -> list[tuple[np.ndarray, np.ndarray]]:
    """(L, class or -1) of the images of the labelled train and test part."""
    found = []
    for name, count in zip(bench.data.labelled, (TRAIN_IMAGES, TEST_IMAGES), strict=True):
        columns = factors(bench, few(bench.data.parts[name], count))
        found.append((columns["spatial"], columns["label"]))
    return found


FACTORIZATION = Task(
    _measure, (), ("spatial",), lambda data: {},
    lambda config: {
        "train_images": TRAIN_IMAGES, "test_images": TEST_IMAGES, "view_scale": SCALE, "view_aspect": ASPECT,
        "shift": f"1/{SHIFT} of the grid to the right", "token": "image number modulo r", "ridge": 1.0,
    }, least=(1, 2),
)  # fmt: skip
