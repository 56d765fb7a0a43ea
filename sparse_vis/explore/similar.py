"""The tokens of an extraction that are most similar to one token, and their maps."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Float, UInt8
from PIL import Image

from sparse_vis.data.decode import decode, fitted, to_square
from sparse_vis.explore.saved import png
from sparse_vis.explore.token_index import READING, TokenIndex, values_of
from sparse_vis.models.stellar import Stellar
from sparse_vis.runtime import files
from sparse_vis.runtime.checksums import crc32
from sparse_vis.runtime.errors import UserError, explained
from sparse_vis.runtime.names import unescaped
from sparse_vis.viz import overlays


class Extraction:
    """A finished extraction (docs/extraction.md) and the folder of its images; nothing is kept in memory.

    Raises:
        UserError: the extraction is not finished, lacks S or L, or is of another model; the folder lacks its
            first image; a shard is damaged or missing.
    """

    def __init__(self, folder: Path, images: Path, model: Stellar, params: dict, max_pixels: int):
        self.folder, self.images, self.max_pixels = folder, images, max_pixels
        what = f"--gallery={folder} is not an extraction"
        with explained((OSError, ValueError), what, "run extract first."):
            self.manifest = files.read_json(folder / "manifest.json")
        lacks = {"sparse", "spatial"} - {*self.manifest.get("outputs", ())}
        if lacks or "shards" not in self.manifest:
            what = f"lacks {' and '.join(sorted(lacks))}" if lacks else "is not finished"
            raise UserError(f"--gallery={folder} {what}; run extract, with its default --outputs.")
        # The checksum includes the tokenizer of a VQ model if `extract` found it.
        with_tokenizer = {k: v for k, v in params.items() if k not in ("classifier", "segmenter")}
        rest = {k: v for k, v in with_tokenizer.items() if k != "tokenizer"}
        if self.manifest.get("weights_crc32") not in (crc32(rest), crc32(with_tokenizer)):
            raise UserError(
                f"--gallery={folder} is of another model; give the --checkpoint of that extraction."
            )
        self.patch = model.patch
        with self._undamaged():
            self.index = TokenIndex(folder, self.manifest)
            self.shown(0, 0)  # raises UserError if the folder lacks the first image

    @contextlib.contextmanager
    def _undamaged(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except (OSError, ValueError) as error:  # pyarrow's
            raise UserError(f"a file in {self.folder} is damaged ({error}); run extract again.") from error

    def search(self, vector: Float[np.ndarray, " d"], count: int) -> list[dict[str, Any]]:
        """The `count` images with the most similar tokens, most similar first, and the best token of each.

        The search is exact; pictures are those of `shown`, as PNGs in base64. Raises UserError, naming the
        file, if a shard is damaged or missing.
        """
        answer = []
        for image, token, cosine in zip(*self.index.nearest(vector, count), strict=True):
            with self._undamaged():
                name, pixels = self.shown(int(image), int(token))
            picture = base64.b64encode(png(pixels)).decode()
            answer.append({"name": name, "token": int(token), "cosine": float(cosine), "picture": picture})
        return answer

    def shown(self, image: int, token: int) -> tuple[str, UInt8[np.ndarray, "H W 3"]]:
        """Name of an image, and the image as the encoder saw it with a token's map over it.

        Raises UserError, naming the image, if it cannot be read.
        """
        about, (shard, row) = self.manifest, self.index.place(image)
        with pq.ParquetFile(self.folder / shard, **READING) as file:
            group = 0  # only that part of the shard is read
            while row >= (rows := file.metadata.row_group(group).num_rows):
                group, row = group + 1, row - rows
            found = file.read_row_group(group, columns=["name", "spatial"]).slice(row, 1)
        name, map_ = found["name"][0].as_py(), found["spatial"].combine_chunks()
        path = self.images / unescaped(name)
        with explained(OSError, f"{path} cannot be read", "give its folder as --images."):
            data = path.read_bytes()
        size = about["image_size"]
        pixels = decode({"image": data, "name": name, "max_pixels": self.max_pixels})
        if about.get("letterbox"):
            square = fitted(pixels, (size, size), letterbox=True)
        else:
            bicubic = Image.Resampling.BICUBIC
            square = to_square(pixels, size, short_side=about["resize"], resample=bicubic)
        rows, columns = grid = tuple(about["grid"])
        L = values_of(map_, tuple(about["outputs"]["spatial"]))[0]
        square = square[: rows * self.patch, : columns * self.patch]
        return name, overlays.lay_over(square, overlays.token_overlay(L, token, grid))
