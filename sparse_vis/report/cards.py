"""The gallery: images with their reconstructions, and for each token its map and its edits."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from sparse_vis.models.stellar import Stellar
from sparse_vis.report.edits import decoded, letter, make_pairs
from sparse_vis.report.images import Encoded
from sparse_vis.runtime.progress import Progress
from sparse_vis.viz.pictures import segment_overlay, segments, token_colours, token_overlay

LARGE, SMALL = 256, 144  # longest side in pixels: of gallery pictures, of edits
SHARP = 96  # up to this size PNG: small pictures are shown enlarged, with visible artefacts if lossy


def data_uri(picture: np.ndarray, longest: int = LARGE) -> str:
    """A picture as a data URI: PNG if small or with transparency, else WebP.

    Args:
        picture: (h, w, 3 or 4) uint8, or float in [0, 1]. longest: largest side in pixels after downscaling.
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
        number: index of the token. colour: CSS. overlay: data URI of its map, relative to its largest entry.
        share: mean of its map over the patches. peak: maximum of its map.
        edits: edit → (data URI, description); empty if nothing can be decoded.
    """

    number: int
    colour: str
    overlay: str
    share: float
    peak: float
    edits: dict[str, tuple[str, str]]


@dataclass(frozen=True)
class Card:
    """One image of the gallery.

    Attributes:
        letter: by which other cards refer to it. name: of the image. image: data URI. aspect: width / height.
        reconstruction: data URI, None without a decoder. psnr: dB, None if sizes differ.
        segmentation: data URI of argmax L. winners: (rows, columns), argmax L of every patch.
        tokens: TokenViews in order. largest: index of the token with the largest share.
        partner: letter of the image with which tokens are swapped, or None.
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


def _css(colour: Float[np.ndarray, "3"]) -> str:
    return "#" + "".join(f"{round(255 * float(x)):02x}" for x in colour)


def _token(
    L: Float[np.ndarray, "n r"], k: int, grid: tuple[int, int], edits: dict[str, tuple[np.ndarray, str]]
) -> TokenView:
    return TokenView(
        number=k, colour=_css(token_colours(L.shape[1])[k]), overlay=data_uri(token_overlay(L, k, grid)),
        share=float(L[:, k].mean()), peak=float(L[:, k].max()),
        edits={edit: (data_uri(picture, SMALL), words) for edit, (picture, words) in edits.items()},
    )  # fmt: skip


def make_cards(
    model: Stellar, params: dict, images: UInt8[np.ndarray, "N H W 3"], names: list[str], found: Encoded,
    *, decodes: bool, edits: bool,
) -> list[Card]:  # fmt: skip
    """The cards of a gallery; prints progress.

    Args:
        model, params: from sparse_vis.load. images, names: of the gallery.
        found: encoded images, those of the gallery first.
        decodes: whether reconstruction is possible. edits: whether edits are possible.
    """
    progress = Progress("editing" if edits else "drawing", len(images))
    cards, grid = [], model.grid(*images.shape[1:3])
    height, width = grid[0] * model.patch, grid[1] * model.patch
    for i, pair in enumerate(make_pairs(found.S[: len(images)], found.L[: len(images)])):
        L, pixels, close, views = pair.L, None, None, [{}] * len(pair.S)
        if decodes:
            pixels, close, views = decoded(model, params, images[i], pair, edits=edits)
        tokens = [_token(L, k, grid, edit) for k, edit in enumerate(views)]
        cards.append(Card(
            letter(i), names[i], data_uri(images[i, :height, :width]), width / height,
            None if pixels is None else data_uri(pixels), close,
            data_uri(segment_overlay(L, grid)), segments(L, grid).tolist(), tokens,
            int(L.mean(axis=0).argmax()), pair.other,
        ))  # fmt: skip
        progress.add(1)
    return cards
