"""Files that the page saves: pictures as PNG, tokens and maps with their edits as .npz."""

from __future__ import annotations

import io
import json
import operator
import pathlib
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from sparse_vis.explore.edits import Edited, replay
from sparse_vis.ops.token_maps import Grid, Localization
from sparse_vis.runtime.errors import UserError


def png(pixels: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """A PNG file, compressed fast rather than well: it goes to a browser on the same computer."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


class Saved(NamedTuple):
    """Content of a .npz file that the page saved, and S and L after its edits."""

    S: Float[np.ndarray, "r d"]
    L: Localization
    grid: Grid
    edits: list[dict[str, Any]]
    edited: Edited


def to_npz(S: Float[np.ndarray, "r d"], L: Localization, grid: Grid, edits: list[dict[str, Any]]) -> bytes:
    """The bytes of a .npz file that `read_saved` reads."""
    file = io.BytesIO()
    np.savez_compressed(file, S=S, L=L, grid=np.array(grid), edits=np.array(json.dumps(edits)))
    return file.getvalue()


def read_saved(path: str | pathlib.Path) -> Saved:
    """Read a file that the page saved, and replay its edits. Raises UserError for any other file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            S, L, edits = file["S"], file["L"], str(file["edits"])
            rows, columns = map(operator.index, file["grid"].tolist())
        if (rows * columns, len(S)) != L.shape or S.ndim != 2 or min(*S.shape, rows, columns) < 1:
            raise ValueError(f"S has shape {S.shape}, L {L.shape} on {rows}x{columns} patches")
        finite = S.dtype == L.dtype == np.float32 and np.isfinite(S).all() and np.isfinite(L).all()
        if not finite or L.min() < 0:
            raise ValueError("S and L are not finite float32 numbers, or L has negative ones")
        edits = json.loads(edits)
    except Exception as error:  # NumPy and zipfile raise many types on damaged bytes
        raise UserError(f"{path} was not saved by the page ({error}); give such a .npz file.") from error
    return Saved(S, L, (rows, columns), edits, replay(S, L, (rows, columns), edits))
