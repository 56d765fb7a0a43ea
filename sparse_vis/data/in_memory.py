"""Images that are given to `sparse_vis.train` as an object: a checksum that identifies them, and a check."""

import hashlib
import os
from typing import Any

import jax
import numpy as np

from sparse_vis.data.folder import NAME_ERRORS, files_sha256
from sparse_vis.data.own import OwnSource
from sparse_vis.data.records import or_skip
from sparse_vis.runtime.errors import UserError

LISTS = (list, tuple, np.ndarray, jax.Array)  # in memory, so that all items enter the checksum
SAMPLE = 16  # items of any other object that enter it


def described(source: OwnSource, data: Any) -> str:
    """Kind, number and checksum of images in memory, for config.data.path.

    The checksum of an array, list or tuple includes all items; of files, their sizes and times. For a data
    set with a checksum of its own (in `datasets`, the fingerprint) it is made from that, for any other object
    from SAMPLE of its items.
    """
    found, rows, of = hashlib.sha256(), range(len(source)), ""
    own = getattr(data, "images_sha256", None) or getattr(data, "_fingerprint", None)
    if isinstance(own, str):
        found.update(own.encode())
        rows = []
    elif not isinstance(data, LISTS):
        rows = np.unique(np.linspace(0, len(source) - 1, SAMPLE).astype(int)).tolist()
        of = f" of {len(rows)} of them" if len(rows) < len(source) else ""
    for row in rows:
        label = None
        try:
            item = source.item(row)
            image, label = item["image"], item.get("label")
            if file := _file_of(image):
                image = f"{file} {files_sha256('', [file], times=True)}".encode(errors=NAME_ERRORS)
            else:
                image = source[row]["image"]
        except UserError as error:  # the training will stop there, or skip it
            image = str(error).encode()
        found.update(f"{label} {np.shape(image)}".encode())
        found.update(image if isinstance(image, bytes) else np.ascontiguousarray(image))
    return f"{type(data).__name__} of {len(source)} images, checksum {found.hexdigest()[:16]}{of}"


def _file_of(image: Any) -> str:
    """The file of an image that is a path, or that Pillow has opened; else ""."""
    path = getattr(image, "filename", image)
    return os.path.expanduser(os.fsdecode(path)) if isinstance(path, str | os.PathLike) else ""


def check_items(source: OwnSource, data: Any) -> None:
    """Raise UserError if an item of a list or tuple is not an image, or is missing; files are not read."""
    for row in range(len(source)) if isinstance(data, list | tuple) else ():
        try:
            file = _file_of(source.item(row)["image"])
            if not (file and os.path.exists(file)):
                source[row]
        except UserError as error:
            raise or_skip(error, "--config.data.on_error=skip to use the next image in its place") from None
