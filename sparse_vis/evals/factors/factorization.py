"""Tests of the claim that S is *what* and L is *where* (docs/evaluation.md).

Measures invariance of matched S and equivariance of L under known crops and flips, how much of one can be
read from the other, and whether edits of L or S have the intended effect on the picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Float, Int
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sparse_vis.evals.features import AnyArray
from sparse_vis.evals.maps.localization import bilinear_weights
from sparse_vis.ops.matching import exact_match


@dataclass(frozen=True)
class Crop:
    """A view of a square image: a box cut out and resized (align_corners=True), then flipped or not.

    Attributes:
        top, left, height, width: of the box in pixels. flip: horizontally, after resizing.
    """

    top: int
    left: int
    height: int
    width: int
    flip: bool


def matches(S: Float[AnyArray, "N r d"], other: Float[AnyArray, "N r d"]) -> Int[np.ndarray, "N r"]:
    """For each token its partner in the one-to-one assignment of least total distance."""
    return np.asarray(jax.jit(exact_match)(S, other))


def matched_cosine(S: Float[AnyArray, "N r d"], other: Float[AnyArray, "N r d"]) -> float:
    """Mean cosine between tokens and their partners."""
    partners = np.take_along_axis(np.asarray(other), matches(S, other)[..., None], axis=1)
    norms = np.linalg.norm(S, axis=-1) * np.linalg.norm(partners, axis=-1)
    return float(np.mean(np.sum(S * partners, axis=-1) / np.maximum(norms, 1e-12)))


def invariance(S: Float[AnyArray, "N r d"], of_views: Float[AnyArray, "N r d"]) -> dict[str, float]:
    """How similar S of an image is to S of its view, compared with the view of another image.

    Args:
        S: (N, r, d) tokens of N >= 2 images. of_views: (N, r, d) tokens of one view of each.

    Returns:
        `S_same_image` and `S_other_image`, mean cosines of matched tokens.
    """
    others = np.roll(np.asarray(of_views), 1, axis=0)
    return {"S_same_image": matched_cosine(S, of_views), "S_other_image": matched_cosine(S, others)}


def seen_through(
    L: Float[AnyArray, "n r"], crop: Crop, side: int, patch: int, view_side: int
) -> Float[np.ndarray, "m r"]:
    """L of an image, sampled at the patch centres of a view of it (bilinear, edge values extended).

    Args:
        L: (n, r) localization matrix of a square image. crop: the view. side: of the image in pixels.
        patch: side of a patch. view_side: of the view in pixels.

    Returns:
        (m, r), m the patches of the view; rows sum to one.
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

    Args:
        L: of N images. of_views: of one view of each. match: for each token of an image, the view's token.
        crops: of the views. side, patch, view_side: sides of image, patch and view in pixels.

    Returns:
        `L_moved`, the mean over patches of sum_k min(expected, found), from 0 to 1; `L_unmoved`, the same if
        the crop is ignored; `L_other_crop`, the same with another image's crop.
    """
    whole = Crop(0, 0, side, side, flip=False)

    def overlap(known: list[Crop]) -> float:
        shares = []
        for own, view, order, crop in zip(np.asarray(L), np.asarray(of_views), match, known, strict=True):
            expected = seen_through(own, crop, side, patch, view_side)
            shares.append(np.minimum(expected, view[:, order]).sum(-1).mean())
        return float(np.mean(shares))

    return {
        "L_moved": overlap(crops),
        "L_unmoved": overlap([whole] * len(crops)),
        "L_other_crop": overlap(crops[1:] + crops[:1]),
    }


def centroids(L: Float[AnyArray, "N n r"], grid: tuple[int, int]) -> Float[np.ndarray, "N r 2"]:
    """Mean position (x, y) in [0, 1] of every token's map."""
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

    Each query has a usual position, which says nothing about the image: its mean centroid over the training
    images is subtracted first.

    Args:
        train, test: (S, L) of images. grid: patches down and across.
    """
    usual = centroids(train[1], grid).mean(axis=0)

    def rows(S, L):
        return np.asarray(S).reshape(-1, S.shape[-1]), (centroids(L, grid) - usual).reshape(-1, 2)

    (x, y), (test_x, true) = rows(*train), rows(*test)
    found = make_pipeline(StandardScaler(), Ridge()).fit(x, y).predict(test_x)
    varied = np.sum(true**2)  # 0 if all images have the same L: then there is nothing to predict
    return float(1 - np.sum((found - true) ** 2) / varied) if varied else 0.0


def class_leak(
    train_L: Float[AnyArray, "N n r"], train_y: Int[AnyArray, " N"], test_L: AnyArray, test_y: AnyArray
) -> float:
    """Test accuracy of a logistic regression that predicts the image's class from L alone."""
    flat = [np.asarray(L, np.float64).reshape(len(L), -1) for L in (train_L, test_L)]
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)).fit(flat[0], train_y)
    return float(probe.score(flat[1], test_y))


def move_token(
    L: Float[AnyArray, "n r"], token: int, shift: tuple[int, int], grid: tuple[int, int]
) -> Float[np.ndarray, "n r"]:
    """L with one token's map moved by whole patches; the others share the rest in their old proportions.

    Args:
        L: (n, r). token: index of the token to move. shift: patches (down, right); what leaves the image is
            lost. grid: patches down and across.
    """
    L, (rows, columns) = np.asarray(L, np.float64), grid
    moved, (down, right) = np.zeros(grid), shift
    source = L[:, token].reshape(grid)
    into = np.s_[max(down, 0) : rows + min(down, 0), max(right, 0) : columns + min(right, 0)]
    out_of = np.s_[max(-down, 0) : rows - max(down, 0), max(-right, 0) : columns - max(right, 0)]
    moved[into] = source[out_of]
    rest = np.delete(L, token, axis=1)
    rest = np.maximum(rest, 1e-6)  # where the token had all the weight, the others share evenly
    rest *= (1 - moved.reshape(-1, 1)) / rest.sum(-1, keepdims=True)
    return np.insert(rest, token, moved.ravel(), axis=1)


def edit_fidelity(
    S: Float[AnyArray, "N r d"],
    L: Float[AnyArray, "N n r"],
    edited_S: Float[AnyArray, "N r d"],
    edited_L: Float[AnyArray, "N n r"],
    encode: Callable[[AnyArray], tuple[np.ndarray, np.ndarray]],
    decode: Callable[[AnyArray, AnyArray], np.ndarray],
) -> dict[str, float]:
    """Whether encoding the reconstruction of edited tokens gives the edited tokens again.

    Args:
        S, L: of N images. edited_S, edited_L: after the edit. encode: images -> (S, L).
        decode: (S, L) -> images.

    Returns:
        `S_edited` and `S_before`: mean cosine of the tokens found with the edited and with the original ones.
        `L_edited` and `L_before`: mean overlap sum_k min(…) of rows of L. An edit without effect gives
        edited < before.
    """
    found_S, found_L = encode(decode(edited_S, edited_L))
    order = matches(edited_S, found_S)
    found_S = np.take_along_axis(found_S, order[..., None], axis=1)
    found_L = np.take_along_axis(found_L, order[:, None], axis=2)

    def cosine(a, b):
        return float(np.mean(np.sum(a * b, -1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))))

    return {
        "S_edited": cosine(found_S, edited_S), "S_before": cosine(found_S, S),
        "L_edited": float(np.minimum(found_L, edited_L).sum(-1).mean()),
        "L_before": float(np.minimum(found_L, L).sum(-1).mean()),
    }  # fmt: skip
