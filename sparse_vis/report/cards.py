"""The gallery: an image, its reconstruction, and for each token its map and what its edits do."""

from __future__ import annotations

import base64
import io
import time
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from sparse_vis.evals.reconstruction import psnr
from sparse_vis.models.stellar import Stellar
from sparse_vis.ops.matching import exact_match
from sparse_vis.pictures import map_overlay, segment_overlay, segments, token_colours
from sparse_vis.report.edits import decode, edited, moved_map
from sparse_vis.report.images import Encoded, announce

LARGE, SMALL = 256, 144  # pixels of the longest side: pictures of the gallery, and edits
SHARP = 96  # up to here PNG: a small picture is shown enlarged, and lossy compression would show too


def data_uri(picture: np.ndarray, longest: int = LARGE) -> str:
    """A picture as a data URI: PNG if small or with transparency, else WebP.

    Args:
        picture: (h, w, 3 or 4) uint8, or float in [0, 1]. longest: side in pixels to which it is reduced.
    """
    if picture.dtype != np.uint8:
        picture = np.uint8(np.round(255 * picture))
    image, file = Image.fromarray(picture), io.BytesIO()
    image.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    form = "PNG" if max(image.size) <= SHARP or picture.shape[-1] == 4 else "WEBP"
    image.save(file, form, **({"optimize": True} if form == "PNG" else {"quality": 82}))
    return f"data:image/{form.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


@dataclass(frozen=True)
class TokenView:
    """One token of an image.

    Attributes:
        number: of the token. colour: CSS. share: mean of its map over the patches.
        overlay: data URI of its map.
        edits: edit → (data URI, what it does), empty where nothing can be decoded.
    """

    number: int
    colour: str
    share: float
    overlay: str
    edits: dict[str, tuple[str, str]]


@dataclass(frozen=True)
class Card:
    """One image of the gallery.

    Attributes:
        letter: by which other cards call it. name: of the image. image: data URI. aspect: width / height.
        reconstruction: data URI, None without a decoder. psnr: dB, None where sizes differ.
        segmentation: data URI of argmax L. winners: (rows, columns) the token of every patch.
        tokens: TokenView of each, in order. largest: number of the token with the largest share.
        partner: letter of the image that tokens are swapped with, or None.
    """

    letter: str
    name: str
    image: str
    aspect: float
    reconstruction: str | None
    psnr: float | None
    segmentation: str
    winners: list[list[int]]
    tokens: list[TokenView]
    largest: int
    partner: str | None


def partners(count: int) -> list[int | None]:
    """The image that each swaps tokens with: neighbours in pairs, the last of an odd number the one before."""
    return [None if count == 1 else i ^ 1 if i ^ 1 < count else i - 1 for i in range(count)]


def letter(i: int) -> str:
    """A, B, …, Z, A1, B1, …"""
    return chr(ord("A") + i % 26) + (str(i // 26) if i >= 26 else "")


def _css(colour: Float[np.ndarray, 3]) -> str:
    return "#" + "".join(f"{round(255 * float(x)):02x}" for x in colour)


def _quality(pixels: np.ndarray, image: np.ndarray) -> list[float] | None:
    """PSNR of decoded pictures against one image; None at another size (224 px come back as 256)."""
    seen = image[: pixels.shape[1], : pixels.shape[2]].astype(np.float32) / 255
    if seen.shape != pixels.shape[1:]:
        return None
    return psnr(pixels, np.broadcast_to(seen, pixels.shape)).tolist()


def token_edits(
    model: Stellar, params: dict, image: UInt8[np.ndarray, "H W 3"], S: Float[np.ndarray, "2 r d"],
    L: Float[np.ndarray, "n r"], other: str | None,
) -> list[dict[str, tuple[str, str]]]:  # fmt: skip
    """For each token: edit → (data URI of the reconstruction, what was done and how close it is).

    Args:
        model, params: of sparse_vis.load. image: as encoded. S: tokens of the image and of its partner.
        L: of the image. other: letter of the partner; None without one, and then nothing is swapped.
    """
    grid = model.grid(*image.shape[:2])
    match = np.asarray(exact_match(S[:1], S[1:]))[0]
    found = edited(S[0], L, S[1][match], grid)
    if other is None:
        del found["swapped"]
    pixels = decode(model, params, np.concatenate(list(found.values())), image.shape[:2])
    quality = _quality(pixels, image)
    steps = [moved_map(L, i, grid)[1] for i in range(len(S[0]))]
    words = {
        "removed": lambda i: "removed",
        "moved": lambda i: f"map moved {abs(steps[i])} patches {'right' if steps[i] > 0 else 'left'}",
        "swapped": lambda i: f"replaced by token {match[i]} of {other}",
    }
    views: list[dict] = [{} for _ in S[0]]
    for k, (edit, i) in enumerate((edit, i) for edit in found for i in range(len(S[0]))):
        close = "" if quality is None else f", PSNR {quality[k]:.1f} dB"
        views[i][edit] = data_uri(pixels[k], SMALL), f"{words[edit](i)}{close}"
    return views


def make_cards(
    model: Stellar, params: dict, images: UInt8[np.ndarray, "N H W 3"], names: list[str], found: Encoded,
    *, decodes: bool, edits: bool,
) -> list[Card]:  # fmt: skip
    """The cards of a gallery; prints progress.

    Args:
        model, params: of sparse_vis.load. images, names: of the gallery.
        found: encoded images, those of the gallery first.
        decodes: whether there is what a reconstruction needs. edits: whether edits can change it.
    """
    size, began, cards = images.shape[1:3], time.perf_counter(), []
    grid, colours = model.grid(*size), token_colours(found.L.shape[-1])
    whole = (grid[0] * model.patch, grid[1] * model.patch)
    for i, other in enumerate(partners(len(images))):
        S, L, image = found.S[[i, i if other is None else other]], found.L[i], images[i]
        pixels = decode(model, params, (L @ S[0])[None], size) if decodes else None
        quality = _quality(pixels, image) if decodes else None
        called = None if other is None else letter(other)
        views = token_edits(model, params, image, S, L, called) if edits else [{}] * len(S[0])
        maps = [map_overlay(L[:, k].reshape(grid), colours[k]) for k in range(len(colours))]
        tokens = [
            TokenView(k, _css(colours[k]), float(L[:, k].mean()), data_uri(maps[k]), views[k])
            for k in range(len(colours))
        ]
        seen = image[: whole[0], : whole[1]]
        cards.append(Card(
            letter(i), names[i], data_uri(seen), whole[1] / whole[0],
            data_uri(pixels[0]) if decodes else None, quality[0] if quality else None,
            data_uri(segment_overlay(L, grid)), segments(L, grid).tolist(), tokens,
            int(L.mean(axis=0).argmax()), called,
        ))  # fmt: skip
        announce("decoded edits of" if edits else "drew", i + 1, len(images), began)
    return cards
