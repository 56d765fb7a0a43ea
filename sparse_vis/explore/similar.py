"""Among the tokens of an extraction, those most similar to one token, and the places that they look at."""

from __future__ import annotations

import base64
import heapq
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Float, UInt8
from PIL import Image

from sparse_vis.data.decode import decode, fitted, to_square
from sparse_vis.explore.saved import png
from sparse_vis.models.stellar import Stellar
from sparse_vis.runtime import files
from sparse_vis.runtime.checksums import crc32
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.names import unescaped
from sparse_vis.viz import overlays

READING = dict(memory_map=True, page_checksum_verification=True)
BLOCK = 1024  # images whose tokens are compared at a time


class Similar(NamedTuple):
    """A token of an image of the extraction."""

    cosine: float
    shard: str
    row: int  # in the shard
    token: int


class Extraction:
    """A finished extraction (docs/extraction.md) whose images are in a folder; nothing is kept in memory.

    Raises:
        UserError: the folder is no finished extraction with S and L, or is one of another model.
    """

    def __init__(self, folder: Path, images: Path, model: Stellar, params: dict, max_pixels: int):
        self.folder, self.images, self.max_pixels = folder, images, max_pixels
        try:
            self.manifest = files.read_json(folder / "manifest.json")
        except (OSError, ValueError) as error:
            raise UserError(f"--gallery={folder} is no extraction ({error}); run extract first.") from error
        lacks = {"sparse", "spatial"} - {*self.manifest.get("outputs", ())}
        if lacks or "shards" not in self.manifest:
            what = f"lacks {' and '.join(sorted(lacks))}" if lacks else "is not finished"
            raise UserError(f"--gallery={folder} {what}; run extract, with its default --outputs.")
        # With the tokenizer of a VQ model if extract found it.
        with_tokenizer = {k: v for k, v in params.items() if k not in ("classifier", "segmenter")}
        rest = {k: v for k, v in with_tokenizer.items() if k != "tokenizer"}
        if self.manifest.get("weights_crc32") not in (crc32(rest), crc32(with_tokenizer)):
            raise UserError(
                f"--gallery={folder} is of another model; give the --checkpoint of that extraction."
            )
        self.patch = model.patch

    def nearest(self, vector: Float[np.ndarray, " d"], count: int) -> list[Similar]:
        """The most similar token of each image, for the `count` images with the highest cosines, exactly."""
        best: list[Similar] = []
        unit = vector / max(float(np.linalg.norm(vector)), 1e-12)
        for name in sorted(self.manifest["shards"]):
            first = 0
            with pq.ParquetFile(self.folder / name, **READING) as shard:
                for block in shard.iter_batches(BLOCK, columns=["sparse"]):
                    S = self._values(block.column("sparse"), "sparse")
                    cosines = S @ unit / np.maximum(np.linalg.norm(S, axis=-1), 1e-12)
                    tokens, highest = cosines.argmax(axis=1), cosines.max(axis=1)
                    for i in np.argsort(-highest, kind="stable")[:count]:
                        best.append(Similar(float(highest[i]), name, first + int(i), int(tokens[i])))
                    best = heapq.nlargest(count, best, key=lambda found: found.cosine)
                    first += len(S)
        return best

    def search(self, vector: Float[np.ndarray, " d"], count: int) -> list[dict[str, Any]]:
        """The tokens of `nearest`, most similar first, with the pictures of `shown` as PNGs in base64.

        Raises:
            UserError: as `shown`, or a shard is damaged or missing.
        """
        try:
            shown = [(found, *self.shown(found)) for found in self.nearest(vector, count)]
        except UserError:
            raise
        except (OSError, ValueError) as error:  # pyarrow's
            raise UserError(f"a file in {self.folder} is damaged ({error}); run extract again.") from error
        return [
            {"name": name, "token": found.token, "cosine": found.cosine,
             "picture": base64.b64encode(png(pixels)).decode()}
            for found, name, pixels in shown
        ]  # fmt: skip

    def _values(self, column: Any, name: str) -> Float[np.ndarray, "m tokens width"]:
        values = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
        return values.reshape(-1, *self.manifest["outputs"][name])

    def shown(self, found: Similar) -> tuple[str, UInt8[np.ndarray, "H W 3"]]:
        """Name of the image of a token, and the image with the token's map, as the encoder saw it.

        Raises:
            UserError: the image is not in the folder of images, or cannot be read.
        """
        table = pq.read_table(self.folder / found.shard, columns=["name", "spatial"], **READING)
        row = table.slice(found.row, 1).combine_chunks()
        name, about = row["name"][0].as_py(), self.manifest
        path = self.images / unescaped(name)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(
                f"{path} cannot be read ({error.strerror}); give its folder as --images."
            ) from error
        pixels, size = (
            decode({"image": data, "name": name, "max_pixels": self.max_pixels}),
            about["image_size"],
        )
        if about.get("letterbox"):
            square = fitted(pixels, (size, size), letterbox=True)
        else:
            bicubic = Image.Resampling.BICUBIC
            square = to_square(pixels, size, short_side=about["resize"], resample=bicubic)
        rows, columns = grid = tuple(about["grid"])
        L = self._values(row["spatial"].chunk(0), "spatial")[0]
        square = square[: rows * self.patch, : columns * self.patch]
        return name, overlays.lay_over(square, overlays.token_overlay(L, found.token, grid))
