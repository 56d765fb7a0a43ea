"""The tokens of an extraction in one memory-mapped file, in which similar tokens are searched."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Float, Float32, Int

from sparse_vis.runtime import files
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.progress import Progress

READING = dict(memory_map=True, page_checksum_verification=True)
NOT_WRITTEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
BLOCK = 4096  # images whose tokens are read or compared at a time


class TokenIndex:
    """All tokens S of a finished extraction, scaled to length one, in the order of its shards.

    The first call writes them to a hidden file in the extraction's folder (4 N r d bytes), which later calls
    map into memory.

    Args:
        folder: of the extraction. manifest: the content of its manifest.json.

    Raises:
        UserError: the file cannot be written. OSError, ValueError: a shard is missing or damaged.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]):
        self.folder, self.shape = folder, tuple(manifest["outputs"]["sparse"])
        self.names = sorted(manifest["shards"])
        rows = [manifest["shards"][name]["rows"] for name in self.names]
        self.ends = np.cumsum(rows)
        # The manifest has the checksums of the shards, so that another extraction gets another file.
        path = folder / f".tokens-{files.checksum(manifest)[:16]}.npy"
        if (tokens := self._read(path)) is None:
            self._write(path)
            tokens = self._read(path)
        self.tokens: Float32[np.ndarray, "N r d"] = tokens

    def _read(self, path: Path) -> Float32[np.ndarray, "N r d"] | None:
        """The tokens of the file; None if it is missing or damaged."""
        try:
            tokens = np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError):
            return None
        expected = (int(self.ends[-1]), *self.shape)
        return tokens if tokens.shape == expected and tokens.dtype == np.float32 else None

    def _write(self, path: Path) -> None:
        progress = Progress("tokens to search", int(self.ends[-1]))
        blocks, shape = self._blocks(), (int(self.ends[-1]), *self.shape)
        try:
            with files.whole(path) as partial:
                tokens = np.lib.format.open_memmap(partial, "w+", np.float32, shape)
                start = 0
                for S in blocks:
                    lengths = np.linalg.norm(S, axis=-1, keepdims=True)
                    tokens[start : start + len(S)] = S / np.maximum(lengths, 1e-12)
                    start += len(S)
                    progress.add(len(S))
                tokens.flush()
        except OSError as error:
            if error.errno not in NOT_WRITTEN:
                raise  # from reading a shard
            what = f"the tokens to search cannot be written into {self.folder} ({error.strerror})"
            raise UserError(f"{what}; give a copy of the extraction as --gallery.") from error

    def _blocks(self) -> Iterator[Float32[np.ndarray, "m r d"]]:
        for name in self.names:
            with pq.ParquetFile(self.folder / name, **READING) as shard:
                for block in shard.iter_batches(BLOCK, columns=["sparse"]):
                    yield values_of(block.column("sparse"), self.shape)

    def nearest(
        self, vector: Float[np.ndarray, " d"], count: int
    ) -> tuple[Int[np.ndarray, " k"], Int[np.ndarray, " k"], Float[np.ndarray, " k"]]:
        """Image, best token and its cosine, of the (at most `count`) images where this cosine is highest."""
        unit = np.float32(vector / max(float(np.linalg.norm(vector)), 1e-12))
        tokens, cosines = (np.empty(len(self.tokens), kind) for kind in (np.int32, np.float32))
        for start in range(0, len(self.tokens), BLOCK):
            rows = slice(start, start + BLOCK)
            # Not a BLAS product: memory is the limit, and on a busy machine BLAS's threads wait for each
            # other.
            found = np.vecdot(self.tokens[rows], unit)
            tokens[rows], cosines[rows] = found.argmax(axis=1), found.max(axis=1)
        best = np.argsort(-cosines, kind="stable")[:count]
        return best, tokens[best], cosines[best]

    def place(self, image: int) -> tuple[str, int]:
        """Shard and row of an image."""
        shard = int(np.searchsorted(self.ends, image, side="right"))
        return self.names[shard], image - int(self.ends[shard - 1] if shard else 0)


def values_of(column: Any, shape: tuple[int, ...]) -> Float32[np.ndarray, "m tokens width"]:
    """A column of an extraction as one array."""
    return column.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, *shape)
