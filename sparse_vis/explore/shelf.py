"""The pictures that the page has sent: encoded at the requested grid sizes, edited, decoded again."""

from __future__ import annotations

import base64
import collections
import hashlib
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float, UInt8

from sparse_vis import api
from sparse_vis.data.decode import decode as decode_file
from sparse_vis.data.decode import fitted
from sparse_vis.evals.pixels.psnr_ssim import psnr
from sparse_vis.explore.edits import Edited, replay
from sparse_vis.explore.page import SIDES
from sparse_vis.explore.saved import png
from sparse_vis.explore.similar import Extraction
from sparse_vis.models.stellar import Stellar
from sparse_vis.report.gallery import decode
from sparse_vis.runtime.errors import UserError

PICTURES, ENCODED = 24, 48  # how many files and encoded squares are kept, those last used
SIMILAR = 8  # how many similar tokens of the gallery are shown
T = TypeVar("T")


class Square(NamedTuple):
    """The square of a picture at one grid size, encoded."""

    pixels: UInt8[np.ndarray, "H W 3"]
    S: Float[np.ndarray, "r d"]
    L: Float[np.ndarray, "n r"]


class NotHeld(Exception):
    """The picture of this id is not on the shelf, or not any more."""


class Shelf:
    """Pictures by id, a checksum, so that the same picture sent twice is kept once."""

    def __init__(
        self, model: Stellar, params: dict, max_pixels: int, gallery: Extraction | None = None, *,
        letterbox: bool = False,
    ):  # fmt: skip
        self.model, self.params, self.max_pixels, self.gallery = model, params, max_pixels, gallery
        self.letterbox = letterbox
        self._files: collections.OrderedDict[str, bytes] = collections.OrderedDict()
        self._encoded: collections.OrderedDict[tuple[str, int], Square] = collections.OrderedDict()
        self._lock = threading.RLock()  # one computation at a time uses all cores already

    def put(self, file: bytes, name: str) -> str:
        """Keep the bytes of a picture; returns its id. Raises UserError, with the name, if it is unusable."""
        key = hashlib.sha256(file).hexdigest()[:16]
        with self._lock:
            self._pixels(file, name)
            _kept(self._files, key, PICTURES, lambda: file)
        return key

    def _pixels(self, file: bytes, name: str) -> UInt8[np.ndarray, "H W 3"]:
        return decode_file({"image": file, "name": name, "max_pixels": self.max_pixels})

    def encoded(self, key: str, side: int) -> Square:
        """The picture's largest centred square, with `letterbox` all of it, on side x side patches, encoded.

        Raises NotHeld.
        """
        if not SIDES[0] <= side <= SIDES[1]:
            raise UserError(f"the resolution {side} is not from {SIDES[0]} to {SIDES[1]} patches; change it.")
        with self._lock:
            if key in self._files:
                self._files.move_to_end(key)
            return _kept(self._encoded, (key, side), ENCODED, lambda: self._encode(key, side))

    def _encode(self, key: str, side: int) -> Square:
        if key not in self._files:
            raise NotHeld(key)
        pixels = self._pixels(self._files[key], key)
        pixels = fitted(pixels, (side * self.model.patch,) * 2, letterbox=self.letterbox)
        found = api.encode(self.model, self.params, pixels[None])
        return Square(pixels, np.asarray(found.sparse[0]), np.asarray(found.spatial[0]))

    def resolved(self, edits: Any) -> Any:
        """The edits, with the vector of the unedited token in place of {"from": picture, side and token}."""
        return [self._resolved(edit) for edit in edits] if isinstance(edits, list) else edits

    def _resolved(self, edit: Any) -> Any:
        if not isinstance(edit, dict) or "from" not in edit:
            return edit
        try:
            place = edit["from"]
            picture, side, token = str(place["picture"]), place["side"], place["token"]
            if type(side) is not int or type(token) is not int:
                raise TypeError
            vector = self.encoded(picture, side).S[token].tolist()
        except (TypeError, KeyError, IndexError):
            raise UserError("from is not a picture, side and token; change it.") from None
        return {**{k: v for k, v in edit.items() if k != "from"}, "vector": vector}

    def edited(self, key: str, side: int, edits: Any) -> tuple[Square, Edited]:
        """A picture's factors before and after the edits; raises as `replay`."""
        found = self.encoded(key, side)
        return found, replay(found.S, found.L, (side, side), self.resolved(edits))

    def decoded(self, edited: Edited, side: int) -> UInt8[np.ndarray, "h w 3"]:
        """Pixels of edited factors."""
        Z, size = (edited.L @ edited.S)[None], (side * self.model.patch,) * 2
        with self._lock:
            return np.uint8(np.rint(255 * decode(self.model, self.params, Z, size)[0]))

    def shown(self, key: str, side: int, edits: Any) -> dict[str, Any]:
        """What the page shows after the edits: the decoded picture, its PSNR in dB, and each token's map.

        "maps" are bytes (r, side * side) relative to "peaks", their largest entries; "winners" is argmax L.
        """
        before, after = self.edited(key, side, edits)
        pixels, peaks = self.decoded(after, side), after.L.max(axis=0)
        maps = np.uint8(np.rint(255 * after.L / np.maximum(peaks, 1e-12))).T
        quality = None
        if pixels.shape == before.pixels.shape:
            quality = float(psnr(*(x[None].astype(np.float32) / 255 for x in (pixels, before.pixels)))[0])
        return {
            "picture": base64.b64encode(png(pixels)).decode(), "psnr": quality,
            "maps": base64.b64encode(maps.tobytes()).decode(), "peaks": peaks.tolist(),
            "winners": base64.b64encode(np.uint8(after.L.argmax(axis=1)).tobytes()).decode(),
            "shares": after.L.mean(axis=0).tolist(),
        }  # fmt: skip

    def again(self, key: str, side: int, edits: Any) -> list[float | None]:
        """For each token, its cosine with the same token of the decoded picture, encoded again.

        It is None for a token whose map is zero.
        """
        _, after = self.edited(key, side, edits)
        pixels = self.decoded(after, side)
        with self._lock:
            again = np.asarray(api.encode(self.model, self.params, pixels[None]).sparse[0])
        lengths = np.linalg.norm(again, axis=1) * np.linalg.norm(after.S, axis=1)
        cosines = (again * after.S).sum(axis=1) / np.maximum(lengths, 1e-12)
        there = after.L.any(axis=0)
        return [float(c) if has_map else None for c, has_map in zip(cosines, there, strict=True)]

    def similar(self, token: int, key: str, side: int, edits: Any) -> list[dict[str, Any]]:
        """The gallery's tokens most similar to this one after the edits, as from `Extraction.search`."""
        _, after = self.edited(key, side, edits)
        if self.gallery is None or token >= len(after.S):
            raise UserError("there is no gallery, or no such token; start explore with --images.")
        with self._lock:
            return self.gallery.search(after.S[token], SIMILAR)


def _kept(held: collections.OrderedDict, key: Any, most: int, make: Callable[[], T]) -> T:
    """held[key], made if it is absent; drops what was used longest ago, if more than `most` are held."""
    if key not in held:
        held[key] = make()
    held.move_to_end(key)
    while len(held) > most:
        held.popitem(last=False)
    return held[key]
