"""The report's gallery (images, and for each token its map and its edits, Z' = L' S') and prototypes."""

from __future__ import annotations

import base64
import io
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from sparse_vis import api
from sparse_vis.evals.dataset import spread
from sparse_vis.evals.pixels.psnr_ssim import psnr
from sparse_vis.models.stellar import Stellar
from sparse_vis.ops.matching import exact_match
from sparse_vis.ops.token_maps import Grid, Localization, move_token, object_token, with_map
from sparse_vis.report.images import Encoded
from sparse_vis.runtime.progress import Progress
from sparse_vis.types import Features
from sparse_vis.viz import overlays

Images = UInt8[np.ndarray, "N H W 3"]
TokenSet = Float[np.ndarray, "r d"]
LARGE, SMALL = 256, 144  # longest sides in pixels, of gallery pictures and of edits
SHARP = 96  # longest side of a PNG; small pictures are shown enlarged, which makes lossy artefacts visible


class Pair(NamedTuple):
    """An image's factors, and the tokens of another image that are matched to its own."""

    S: TokenSet
    L: Localization
    partner: TokenSet  # the matched token's S, for each token
    match: Int[np.ndarray, " r"]  # its index in the other image
    other: str | None  # letter of the other image; None if there is none


def make_cards(
    model: Stellar, params: dict, images: Images, names: list[str], found: Encoded,
    *, decodes: bool, edits: bool,
) -> list[dict[str, Any]]:  # fmt: skip
    """The images of a gallery as report.html shows them; pictures are data URIs. Prints progress.

    `found` begins with these images; `decodes` and `edits`: whether the model can decode, and whether its
    tokens can be edited.
    """
    progress = Progress("editing" if edits else "drawing", len(images))
    cards, grid = [], model.grid(*images.shape[1:3])
    height, width = grid[0] * model.patch, grid[1] * model.patch
    for i, pair in enumerate(make_pairs(found.S[: len(images)], found.L[: len(images)])):
        L, pixels, quality, views = pair.L, None, None, [{}] * len(pair.S)
        if decodes:
            pixels, quality, views = decoded(model, params, images[i], pair, edits=edits)
        colours, shares = np.rint(255 * overlays.token_colours(len(views))).astype(int), L.mean(axis=0)
        tokens = [
            {
                "number": k, "colour": "#{:02x}{:02x}{:02x}".format(*colours[k]),
                "overlay": data_uri(overlays.token_overlay(L, k, grid)),
                "share": float(shares[k]), "peak": float(L[:, k].max()),  # of L, over the patches
                "edits": {edit: (data_uri(picture, SMALL), said) for edit, (picture, said) in view.items()},
            }
            for k, view in enumerate(views)
        ]  # fmt: skip
        cards.append({
            "letter": letter(i), "name": names[i], "aspect": width / height,
            "image": data_uri(images[i, :height, :width]),
            "reconstruction": None if pixels is None else data_uri(pixels), "psnr": quality,
            "segmentation": data_uri(overlays.segment_overlay(L, grid)),
            "winners": overlays.segments(L, grid).tolist(),  # the token of every patch
            "tokens": tokens, "object": object_token(L, grid), "partner": pair.other,
        })  # fmt: skip
        progress.add(1)
    return cards


def gallery_first(labels: Int[np.ndarray, " N"], count: int) -> Int[np.ndarray, " N"]:
    """An order of images, whose first `count` are spread over the classes (without classes, evenly)."""
    if (labels < 0).any():
        first = spread(np.arange(len(labels)), count)
    else:
        # The n-th image of its class comes in the n-th round.
        turns = np.array([np.count_nonzero(labels[:i] == label) for i, label in enumerate(labels)])
        first = np.sort(np.argsort(turns, kind="stable")[:count])
    return np.concatenate([first, np.setdiff1d(np.arange(len(labels)), first)])


def data_uri(picture: np.ndarray, longest: int = LARGE) -> str:
    """A picture, uint8 or in [0, 1], as a data URI with sides of at most `longest` pixels.

    PNG if small or with transparency, else WebP.
    """
    if picture.dtype != np.uint8:
        picture = np.uint8(np.round(255 * picture))
    image, file = Image.fromarray(picture), io.BytesIO()
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    form = "PNG" if max(image.size) <= SHARP or picture.shape[-1] == 4 else "WEBP"
    image.save(file, form, **({"optimize": True} if form == "PNG" else {"quality": 82}))
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def letter(i: int) -> str:
    """A, B, …, Z, A1, B1, …"""
    return chr(ord("A") + i % 26) + (str(i // 26) if i >= 26 else "")


def partners(count: int) -> list[int | None]:
    """For each image, the index of the image with which it swaps tokens; None if there is only one.

    Neighbours form pairs; if one is left at the end, it gets the image before it.
    """
    return [None if count == 1 else i ^ 1 if i ^ 1 < count else i - 1 for i in range(count)]


def make_pairs(S: Float[np.ndarray, "N r d"], L: Float[np.ndarray, "N n r"]) -> list[Pair]:
    """A Pair for every image; tokens are matched one to one."""
    others = partners(len(S))
    theirs = S[[i if other is None else other for i, other in enumerate(others)]]
    matches = np.asarray(exact_match(jnp.asarray(S), jnp.asarray(theirs)))
    return [
        Pair(S[i], L[i], theirs[i][matches[i]], matches[i], None if other is None else letter(other))
        for i, other in enumerate(others)
    ]


def sideways(L: Localization, token: int, grid: Grid) -> int:
    """Columns by which a token's map is moved: a quarter of the image, away from the nearer edge."""
    picture = L[:, token].reshape(grid)
    centre = (picture.sum(axis=0) * (np.arange(grid[1]) + 0.5)).sum() / picture.sum()
    return max(1, grid[1] // 4) * (1 if centre <= grid[1] / 2 else -1)


def edited(
    S: TokenSet, L: Localization, partner: TokenSet, grid: Grid
) -> dict[str, Float[np.ndarray, "r n d"]]:
    """Z' of every edit of every token of an image.

    Returns:
        edit → (r, n, d): "removed", "moved" (sideways) and "swapped" (S of the partner, the same L).
    """
    tokens, nowhere = range(len(S)), np.zeros(len(L), L.dtype)
    return {
        "removed": np.stack([with_map(L, i, nowhere) @ S for i in tokens]),
        "moved": np.stack([move_token(L, i, (0, sideways(L, i, grid)), grid) @ S for i in tokens]),
        "swapped": np.stack([L @ np.where(np.arange(len(S))[:, None] == i, partner[i], S) for i in tokens]),
    }


def decode(
    model: Stellar, params: dict, Z: Float[np.ndarray, "N n d"], size: tuple[int, int]
) -> Float[np.ndarray, "N h w 3"]:
    """Pixels, clipped to [0, 1], from features of images of `size` (height, width)."""
    features = Features(cls=None, sparse=None, dense=None, spatial=None, lowrank=jnp.asarray(Z), size=size)
    return np.asarray(api.reconstruct(model, params, features))


def decoded(
    model: Stellar, params: dict, image: UInt8[np.ndarray, "H W 3"], pair: Pair, *, edits: bool
) -> tuple[np.ndarray, float | None, list[dict[str, tuple[np.ndarray, str]]]]:
    """Decode an image's tokens, and all edits of them.

    Returns:
        The reconstruction; its PSNR in dB, None if sizes differ (VQ: 256 px for 224 px); and for each token,
        edit → (pixels, what was done).
    """
    grid, tokens = model.grid(*image.shape[:2]), range(len(pair.S))
    found = edited(pair.S, pair.L, pair.partner, grid) if edits else {}
    if pair.other is None:
        found.pop("swapped", None)
    Z = np.concatenate([(pair.L @ pair.S)[None], *found.values()])
    pixels = decode(model, params, Z, image.shape[:2])
    seen, quality = image[: pixels.shape[1], : pixels.shape[2]].astype(np.float32) / 255, [None] * len(Z)
    if seen.shape == pixels.shape[1:]:
        quality = psnr(pixels, np.broadcast_to(seen, pixels.shape)).tolist()
    views: list[dict] = [{} for _ in tokens]
    for k, (edit, i) in enumerate(((edit, i) for edit in found for i in tokens), start=1):
        step, said = sideways(pair.L, i, grid), "removed"
        if edit == "moved":
            said = f"map moved {abs(step)} patches {'right' if step > 0 else 'left'}"
        elif edit == "swapped":
            said = f"replaced by token {pair.match[i]} of {pair.other}"
        views[i][edit] = pixels[k], said + ("" if quality[k] is None else f", PSNR {quality[k]:.1f}\u00a0dB")
    return pixels[0], quality[0], views


def nearest_tokens(
    S: Float[np.ndarray, "N r d"], image: int, token: int, count: int
) -> list[tuple[int, int, float]]:
    """(image, token, cosine) of every other image's token that is most similar to a token of `image`.

    At most `count` are returned, most similar first.
    """
    unit = S / np.maximum(np.linalg.norm(S, axis=-1, keepdims=True), 1e-12)
    cosines = unit @ unit[image, token]
    best, closest = cosines.max(axis=1), cosines.argmax(axis=1)
    order = [int(i) for i in np.argsort(-best, kind="stable") if i != image][:count]
    return [(i, int(closest[i]), float(best[i])) for i in order]


def make_searches(
    found: Encoded, images: Images, names: list[str], queries: int, grid: Grid, patch: int, *, count: int
) -> list[list[tuple[str, str]]]:
    """(data URI, label) of each of the first `queries` images' object tokens and its `count` neighbours."""
    whole, made = images[:, : grid[0] * patch, : grid[1] * patch], []

    def shown(i: int, token: int, said: str) -> tuple[str, str]:
        overlay = overlays.token_overlay(found.L[i], token, grid)
        return data_uri(overlays.lay_over(whole[i], overlay), SMALL), f"token {token} of {names[i]}{said}"

    for i in range(queries):
        token = object_token(found.L[i], grid)
        near = nearest_tokens(found.S, i, token, count)
        made.append([shown(i, token, ""), *(shown(j, k, f", cosine {cosine:.2f}") for j, k, cosine in near)])
    return made


class Page(NamedTuple):
    """A prototype and the images that vote most for it."""

    number: int
    wins: int  # tokens whose most likely prototype it is
    images: list[int]  # indices, highest vote first
    maps: Float[np.ndarray, "m n"]  # votes of their patches, 0 to 1

    def regions(self, images: Images, names: list[str], grid: Grid, patch: int) -> list[tuple[str, str]]:
        """(data URI, label) of each image, darkened where the vote is low; arguments are of all voters."""
        whole = images[:, : grid[0] * patch, : grid[1] * patch]
        return [
            (data_uri(overlays.lay_over(whole[i], overlays.map_overlay(votes.reshape(grid))), SMALL),
             f"{names[i]}, vote {votes.max():.2g}")
            for i, votes in zip(self.images, self.maps, strict=True)
        ]  # fmt: skip


def make_pages(
    found: Encoded, prototypes: Float[np.ndarray, "D K"], temperature: float, *, pages: int, regions: int
) -> list[Page]:
    """At most `pages` prototypes, those that most tokens prefer, with at most `regions` images for each."""
    used, wins = np.unique(found.winner, return_counts=True)
    order, made = np.argsort(-wins, kind="stable")[:pages], []
    logits = np.einsum("ird,dp->ipr", found.embedding, prototypes[:, used[order]]) / temperature
    p = np.exp(logits - found.normaliser[:, None])  # the student's softmax over all K prototypes
    for k, which in enumerate(order):
        votes = overlays.prototype_votes(found.L, p[:, k])
        best = overlays.strongest(votes, regions)
        made.append(Page(int(used[which]), int(wins[which]), best.tolist(), votes[best]))
    return made
