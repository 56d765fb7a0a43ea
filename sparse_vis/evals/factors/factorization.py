"""Tests of the claim that S is *what* and L is *where* (docs/evaluation.md).

They measure invariance of matched S and equivariance of L under known crops and flips, how well each predicts
what the other should hold, and whether edits of L or S have the intended effect on the picture.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from sparse_vis.data.records import Records
from sparse_vis.evals.columns import at_size
from sparse_vis.evals.dataset import no_classes
from sparse_vis.evals.features import AnyArray, square_grid
from sparse_vis.evals.maps.localization import bilinear_weights
from sparse_vis.evals.task import Bench, Result, Task
from sparse_vis.ops.matching import exact_match
from sparse_vis.ops.token_maps import move_token
from sparse_vis.runtime.batches import run_in_batches
from sparse_vis.views.crops import crop_and_flip, sample_box

TRAIN_IMAGES, TEST_IMAGES = 2000, 500  # at most, evenly spread
SCALE, ASPECT = (0.36, 1.0), (3 / 4, 4 / 3)  # of the views: those of the global views in pretraining
SHIFT = 4  # maps are moved right by 1/SHIFT of the grid


class Crop(NamedTuple):
    """A view: a box of pixels, resized to a square (align_corners=True), then flipped horizontally or not."""

    top: int
    left: int
    height: int
    width: int
    flip: bool


def matches(S: Float[AnyArray, "N r d"], other: Float[AnyArray, "N r d"]) -> Int[np.ndarray, "N r"]:
    """For each token, its partner in the one-to-one assignment of least total distance."""
    return np.asarray(jax.jit(exact_match)(S, other))


def cosine(a: Float[AnyArray, "N r d"], b: Float[AnyArray, "N r d"]) -> float:
    """Mean cosine between tokens of equal index."""
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return float(np.mean(np.sum(a * b, axis=-1) / np.maximum(norms, 1e-12)))


def invariance(S: Float[AnyArray, "N r d"], of_views: Float[AnyArray, "N r d"]) -> dict[str, float]:
    """How similar S of an image is to S of its view, and to S of another image's view (N ≥ 2).

    Returns:
        `S_same_image` and `S_other_image`, mean cosines of matched tokens.
    """
    known = {"S_same_image": np.asarray(of_views), "S_other_image": np.roll(of_views, 1, axis=0)}
    partners = {name: np.take_along_axis(x, matches(S, x)[..., None], axis=1) for name, x in known.items()}
    return {name: cosine(S, x) for name, x in partners.items()}


def seen_through(
    L: Float[AnyArray, "n r"], crop: Crop, side: int, patch: int, view_side: int
) -> Float[np.ndarray, "m r"]:
    """L of a square image, sampled at the centres of a view's m patches (bilinear, edge values extended).

    `side`, `patch` and `view_side`: sides of image, patch and view in pixels.
    """
    grid, cells = side // patch, view_side // patch
    centre = (np.arange(cells) + 0.5) * patch - 0.5
    along_x = view_side - 1 - centre if crop.flip else centre

    def weights(start: int, length: int, pixels: np.ndarray) -> np.ndarray:
        return bilinear_weights((start + pixels * (length - 1) / (view_side - 1) + 0.5) / patch - 0.5, grid)

    rows, columns = weights(crop.top, crop.height, centre), weights(crop.left, crop.width, along_x)
    maps = np.asarray(L, np.float64).reshape(grid, grid, -1)
    return np.einsum("yi,xj,ijr->yxr", rows, columns, maps).reshape(cells * cells, -1)


def equivariance(
    L: Float[AnyArray, "N n r"],
    of_views: Float[AnyArray, "N m r"],
    match: Int[AnyArray, "N r"],
    crops: list[Crop],
    *,
    side: int,
    patch: int,
    view_side: int,
) -> dict[str, float]:
    """Whether L of a view equals L of the image seen through the view's crop.

    `match`: for each token of an image, the view's token. The sides are as in `seen_through`.

    Returns:
        `L_moved`, the mean over patches of sum_k min(expected, found), from 0 to 1; `L_unmoved`, the same
        without regard to the crop; `L_other_crop`, the same with another image's crop.
    """

    def overlap(known: list[Crop]) -> float:
        shares = []
        for own, view, order, crop in zip(np.asarray(L), np.asarray(of_views), match, known, strict=True):
            expected = seen_through(own, crop, side, patch, view_side)
            shares.append(np.minimum(expected, view[:, order]).sum(-1).mean())
        return float(np.mean(shares))

    whole = Crop(0, 0, side, side, flip=False)
    return {
        "L_moved": overlap(crops),
        "L_unmoved": overlap([whole] * len(crops)),
        "L_other_crop": overlap(crops[1:] + crops[:1]),
    }


def centroids(L: Float[AnyArray, "N n r"], grid: tuple[int, int]) -> Float[np.ndarray, "N r 2"]:
    """Centre of mass (x, y), in [0, 1], of every token's map."""
    rows, columns = grid
    y, x = np.divmod(np.arange(rows * columns), columns)
    place = np.stack([(x + 0.5) / columns, (y + 0.5) / rows], axis=-1)
    mass = np.swapaxes(np.asarray(L, np.float64), 1, 2)
    return mass @ place / np.maximum(mass.sum(-1, keepdims=True), 1e-12)


def position_leak(
    train: tuple[Float[AnyArray, "N r d"], Float[AnyArray, "N n r"]],
    test: tuple[Float[AnyArray, "M r d"], Float[AnyArray, "M n r"]],
    grid: tuple[int, int],
) -> float:
    """How well ridge regression predicts a token's centroid from its S: R^2 on test, 0 for the mean position.

    Each query's mean centroid over the training images is subtracted first, as it says nothing about an
    image. train and test are (S, L) of images.
    """
    from sklearn import linear_model, pipeline, preprocessing  # slow imports

    usual = centroids(train[1], grid).mean(axis=0)

    def rows(S, L):
        return np.asarray(S).reshape(-1, S.shape[-1]), (centroids(L, grid) - usual).reshape(-1, 2)

    (x, y), (test_x, true) = rows(*train), rows(*test)
    probe = pipeline.make_pipeline(preprocessing.StandardScaler(), linear_model.Ridge())
    found = probe.fit(x, y).predict(test_x)
    varied = np.sum(true**2)  # 0 if all images have the same L: then there is nothing to predict
    return float(1 - np.sum((found - true) ** 2) / varied) if varied else 0.0


def class_leak(
    train_L: Float[AnyArray, "N n r"], train_y: Int[AnyArray, " N"], test_L: AnyArray, test_y: AnyArray
) -> float:
    """Test accuracy of a logistic regression that predicts the image's class from L alone."""
    from sklearn import linear_model, pipeline, preprocessing  # slow imports

    flat = [np.asarray(L, np.float64).reshape(len(L), -1) for L in (train_L, test_L)]
    regression = linear_model.LogisticRegression(max_iter=300)
    probe = pipeline.make_pipeline(preprocessing.StandardScaler(), regression).fit(flat[0], train_y)
    return float(probe.score(flat[1], test_y))


def edit_fidelity(
    S: Float[AnyArray, "N r d"],
    L: Float[AnyArray, "N n r"],
    edited_S: Float[AnyArray, "N r d"],
    edited_L: Float[AnyArray, "N n r"],
    encode: Callable[[AnyArray], tuple[np.ndarray, np.ndarray]],
    decode: Callable[[AnyArray, AnyArray], np.ndarray],
) -> dict[str, float]:
    """Whether encoding the reconstruction of edited tokens gives the edited tokens again.

    Returns:
        `S_edited` and `S_before`: mean cosines of the tokens found with the edited and with the original
        ones; `L_edited` and `L_before`: the same as overlaps of L, sum_k min(…). An edit without effect gives
        edited < before.
    """
    found_S, found_L = encode(decode(edited_S, edited_L))
    order = matches(edited_S, found_S)
    found_S = np.take_along_axis(found_S, order[..., None], axis=1)
    found_L = np.take_along_axis(found_L, order[:, None], axis=2)
    return {
        "S_edited": cosine(found_S, edited_S), "S_before": cosine(found_S, S),
        "L_edited": float(np.minimum(found_L, edited_L).sum(-1).mean()),
        "L_before": float(np.minimum(found_L, L).sum(-1).mean()),
    }  # fmt: skip


@functools.partial(jax.jit, static_argnames="size")
def random_view(key, image, size: int):
    """A random crop of an image, resized to `size` pixels; its box; whether it is flipped."""
    box_key, flip_key = jax.random.split(key)
    box = sample_box(box_key, *jnp.asarray(image.shape[:2], jnp.int32), SCALE, ASPECT)
    flip = jax.random.bernoulli(flip_key, np.float32(0.5))
    return crop_and_flip(image, box, flip, size), box, flip


def factors(bench: Bench, name: str, count: int, *more: str) -> dict[str, np.ndarray]:
    """S, L, further features, images and labels of at most `count` images of a part, evenly spread."""
    part = bench.data.parts[name].at_most(count)
    found, progress = [], bench.progress("features", len(part))

    def compute(records: Records) -> dict[str, np.ndarray]:
        kept = {"image": records.image} | ({} if records.label is None else {"label": records.label})
        return kept | bench.encode(records.image, "sparse", "spatial", *more)

    for arrays in part.in_shares(bench.batch, compute):
        found.append(arrays)
        progress.add(len(arrays["image"]))
    return jax.tree.map(lambda *batches: np.concatenate(batches), *found)


def encode_factors(bench: Bench, images: AnyArray) -> tuple[np.ndarray, np.ndarray]:
    """S and L of any number of images in memory."""
    found = bench.encode(images, "sparse", "spatial", progress=bench.progress("encoding", len(images)))
    return found["sparse"], found["spatial"]


def decode_factors(bench: Bench, S: AnyArray, L: AnyArray, size: int) -> Float[np.ndarray, "N size size 3"]:
    """Reconstructions from any number of S and L, resized to `size` pixels."""
    rows, progress = [np.asarray(x, np.float32) for x in (S, L)], bench.progress("decoding", len(S))
    return at_size(run_in_batches(bench.encoder.decode, bench.batch, *rows, progress=progress), size)


def _compared(value: float, reference: float) -> dict[str, float]:
    return {"value": value, "compared_with": reference}


def _views(bench: Bench, test: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    S, L, size = test["sparse"], test["spatial"], test["image"].shape[1]
    keys = jax.random.split(jax.random.key(bench.seed), len(S))
    found = [jax.device_get(random_view(*pair, size)) for pair in zip(keys, test["image"], strict=True)]
    view_S, view_L = encode_factors(bench, np.stack([view for view, *_ in found]))
    crops = [Crop(*(int(side) for side in box), flip=bool(flip)) for _, box, flip in found]
    same, match = invariance(S, view_S), matches(S, view_S)
    sizes = dict(side=size, patch=size // square_grid(L.shape[1])[0], view_side=size)
    moved = equivariance(L, view_L, match, crops, **sizes)
    return {
        "S of a view": _compared(same["S_same_image"], same["S_other_image"]),
        "L of a view": _compared(moved["L_moved"], moved["L_unmoved"]),
        "L of a view, other crop": _compared(moved["L_moved"], moved["L_other_crop"]),
    }


def _edits(bench: Bench, test: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    S, L, size = test["sparse"], test["spatial"], test["image"].shape[1]
    grid, images = square_grid(L.shape[1]), np.arange(len(S))
    tokens = images % S.shape[1]
    shift = (0, max(1, grid[1] // SHIFT))
    moved = np.stack([move_token(L[i], int(tokens[i]), shift, grid) for i in images])
    swapped = S.copy()
    swapped[images, tokens] = np.roll(S, 1, axis=0)[images, tokens]
    encode, out = functools.partial(encode_factors, bench), {}
    for name, edited in (("moved map", (S, moved)), ("swapped token", (swapped, L))):
        found = edit_fidelity(S, L, *edited, encode, lambda S, L: decode_factors(bench, S, L, size))
        for part in "SL":
            out[f"{part} after a {name}"] = _compared(found[f"{part}_edited"], found[f"{part}_before"])
    return out


def _measure(bench: Bench, config: ConfigDict) -> Result:
    counts, absent = (TRAIN_IMAGES, TEST_IMAGES), {}
    train, test = map(functools.partial(factors, bench), ("train", "test"), counts)
    grid = square_grid(test["spatial"].shape[1])
    metrics = _views(bench, test)
    leak = position_leak((train["sparse"], train["spatial"]), (test["sparse"], test["spatial"]), grid)
    metrics["position in S (R2)"] = _compared(leak, 0.0)
    why = "its images do not have one class each"
    if bench.data.single:
        labelled = map(functools.partial(factors, bench), bench.data.labelled, counts)
        (x, y), (test_x, test_y) = ((found["spatial"], found["label"]) for found in labelled)
        why = no_classes(y, test_y, 2)
    if why:
        absent["class in L"] = why
    else:
        known, test_known = y >= 0, test_y >= 0
        chance = np.bincount(test_y[test_known]).max() / test_known.sum()
        leak = class_leak(x[known], y[known], test_x[test_known], test_y[test_known])
        metrics["class in L"] = _compared(leak, float(chance))
    if bench.encoder.decode is None:
        absent["edits"] = bench.encoder.absent.get("reconstruction", "it has no decoder")
    else:
        metrics |= _edits(bench, test)
    return Result(metrics, absent)


FACTORIZATION = Task(
    _measure, (), ("spatial",), lambda data: {},
    lambda config: {
        "train_images": TRAIN_IMAGES, "test_images": TEST_IMAGES, "view_scale": SCALE, "view_aspect": ASPECT,
        "shift": f"1/{SHIFT} of the grid to the right", "token": "image number modulo r", "ridge": 1.0,
    }, least=(1, 2),
)  # fmt: skip
