"""Remove unusable images from the data of evaluations (config.data.on_error=skip)."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib

import numpy as np

from sparse_vis.data.decode import decode
from sparse_vis.data.records import load_ahead, usable
from sparse_vis.data.scenes import SceneSource
from sparse_vis.evals.dataset import Data, Part, about_part
from sparse_vis.runtime import skipped
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.progress import Progress


def without_unusable(data: Data, workdir: pathlib.Path) -> Data:
    """The data without images that cannot be decoded, which are listed in skipped.txt of the workdir.

    Reads every image once, before any is encoded, so that all tasks and encoders see the same images, and the
    record of results identifies them.

    Raises:
        UserError: no image of a part can be used.
    """
    skips: skipped.Skips = []
    parts = {name: _usable_part(name, part, skips) for name, part in data.parts.items()}
    if not skips:
        return data
    skipped.append(workdir, skipped.lines(skips))
    print(f"{len(skips)} images skipped; {workdir / skipped.FILE} says which and why", flush=True)
    about = data.about | {"parts": {name: about_part(part) for name, part in parts.items()}}
    return dataclasses.replace(data, parts=parts, about=about)


def _usable_part(name: str, part: Part, skips: skipped.Skips) -> Part:
    if isinstance(part.source, SceneSource):  # computed, not read from files
        return part

    def check(row: int) -> int:
        decode(part.source[row])
        return row

    progress, before = Progress(f"looking at {name} images", len(part)), len(skips)
    rows = part.indices.tolist()
    kept = []
    with contextlib.closing(load_ahead(check, rows, part.threads, ahead=4 * part.threads)) as futures:
        for row in usable(part.source, futures, "skip", skips):
            kept.append(row)
            progress.add(1)
    if not kept:
        raise UserError(f"none of {len(part)} {name} images can be used; {skips[before][1].rstrip('.')}.")
    return dataclasses.replace(part, indices=np.array(kept))
