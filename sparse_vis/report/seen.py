"""Find out whether a model was trained on the images that a report shows."""

from __future__ import annotations

import filecmp
import os
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from sparse_vis.build import build_source
from sparse_vis.data.packed import PackedSource
from sparse_vis.data.scenes import SceneSource
from sparse_vis.data.sources import FolderSource, Source
from sparse_vis.data.tfds import TfdsSource
from sparse_vis.runtime.errors import UserError

Rows = Sequence[int] | np.ndarray
UNKNOWN = "Images of which it is not known whether the model was trained on them"


def name_images(config: ConfigDict | None, source: Source, rows: Rows) -> str:
    """In words, with the reason: whether images are training images, held out, some of both, or not known.

    Args:
        config: of the training; None if it is not known. source, rows: source and indices of the images.
    """
    if config is None:
        return f"{UNKNOWN} (a released file does not say on which it was)"
    try:
        trained, why = _trained_on(config, source, rows)
    except UserError as error:
        return f"{UNKNOWN} ({str(error).rstrip('.')})"
    if trained is None:
        return f"{UNKNOWN} ({why})"
    if trained:
        return "Training images" if trained == len(rows) else f"{trained} of {len(rows)} are training images"
    started = f"; what the weights of {config.init} had seen is not known" if config.init else ""
    return f"Held-out images ({why}{started})"


def _trained_on(config: ConfigDict, source: Source, rows: Rows) -> tuple[int | None, str]:
    """Number of the rows that are training images, None if it is not known; and the reason."""
    d = config.data
    if d.source == "scenes":
        if isinstance(source, SceneSource):
            return len(rows) * (source.split == d.split), f"training had the split {d.split!r}"
        return 0, "the model was trained on scenes, which are drawn"
    training = build_source(config, d.split)
    if isinstance(source, FolderSource) and isinstance(training, FolderSource):
        why = f"none has the name and content of one in {training.path}"
        return _shared_files(source, rows, training), why
    if isinstance(source, FolderSource) and isinstance(training, PackedSource):
        if source.images_sha256 == training.images_sha256:
            return len(rows), ""
        return None, f"single images are not looked up in the packed folder {training.path}"
    if isinstance(source, PackedSource) and isinstance(training, PackedSource):
        same = os.path.samefile(source.path, training.path) or source.images_sha256 == training.images_sha256
        return len(rows) * same, f"training had another packed folder, {training.path}"
    if isinstance(source, TfdsSource) and isinstance(training, TfdsSource):
        first, second = source.split, training.split
        if first == second:
            return len(rows), ""
        if set("+[(") & {*first, *second}:
            return None, f"the splits {first!r} and {second!r} may overlap"
        return 0, f"training had the split {second!r}"
    return None, f"training had {d.source}"


def _shared_files(source: FolderSource, rows: Rows, training: FolderSource) -> int:
    """Number of images that are training images: the same file, or a copy with the same name."""
    alike = defaultdict(set)
    for name in training.names:
        alike[os.path.basename(name)].add(os.path.join(training.path, name))
    count = 0
    for row in rows:
        path = os.path.join(source.path, source.names[int(row)])
        own = os.path.basename(path), os.path.basename(os.path.realpath(path))  # it may be a link
        others = set().union(*(alike.get(name, ()) for name in own))
        count += any(filecmp.cmp(path, other, shallow=False) for other in others)
    return count
