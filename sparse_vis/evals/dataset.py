"""The images of evaluations: parts of any source, opened and checked early, read when needed."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from ml_collections import ConfigDict

from sparse_vis.build import build_source
from sparse_vis.data.compose import ComposedSource
from sparse_vis.data.decode import decode
from sparse_vis.data.folder import images_sha256
from sparse_vis.data.records import Records, in_batches, none_usable, or_skip, read_records
from sparse_vis.data.sources import Source
from sparse_vis.evals.features import AnyArray
from sparse_vis.runtime.batches import in_shares
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.names import escaped
from sparse_vis.runtime.skipped import Skips


@dataclass(frozen=True, eq=False)
class Part:
    """Some records of a source; equal only to itself, so that it can be a key."""

    source: Source
    indices: Int[np.ndarray, " N"]  # of the records, in order
    size: int  # side of the square images in pixels
    short_side: int  # pixels, before the centre crop
    threads: int  # number of batches read at a time
    masks: pathlib.Path | None = None  # folder of label maps, if the source has none of its own
    map_classes: int = 0  # number of classes in label maps; 0 if there are no maps
    map_shift: int = 0  # -1 if files of label maps have 0 for "unknown" and count classes from 1
    resize: str = "antialiased"  # how `batches` resizes, as in `read_records`
    on_error: str = "stop"  # at an unusable image: "stop" or "skip"

    def __len__(self) -> int:
        return len(self.indices)

    def at_most(self, count: int) -> Part:
        """At most `count` records of the part, every n-th."""
        return self.only(np.s_[:: -(-len(self) // count)])

    def only(self, rows: Int[np.ndarray, " n"] | slice) -> Part:
        """These rows of the part."""
        return dataclasses.replace(self, indices=self.indices[rows])

    def without(self, share: float, seed: int) -> Part:
        """The part without a random share of its records, which published probes hold out for validation."""
        left = np.random.default_rng(seed).permutation(len(self))[int(share * len(self)) :]
        return self.only(np.sort(left))

    def record(self, row: int | np.integer) -> dict[str, Any]:
        """A record of the source, its image decoded. Raises UserError if it cannot be used."""
        with self._offering_to_skip():
            record = self.source[int(row)]
            return {**record, "image": decode(record)}

    def example(self) -> dict[str, Any]:
        """The first usable record, its image decoded.

        Raises UserError if no record is usable, or, with on_error="stop", if the first is not.
        """
        skips: Skips = []
        for row in self.indices:
            try:
                return self.record(row)
            except UserError as error:
                if self.on_error == "stop":
                    raise
                skips.append((str(row), str(error)))
        raise none_usable(len(self), skips, f"images of {self.source!r}")

    @contextlib.contextmanager
    def _offering_to_skip(self) -> Iterator[None]:
        try:
            yield
        except UserError as error:
            if self.on_error == "skip":
                raise
            raise or_skip(error, "--config.data.on_error=skip to leave it out") from None

    def batches(self, batch_size: int) -> Iterator[Records]:
        """All records in order, in batches; images are resized by their short side, then centre-cropped."""

        def load(rows):
            with self._offering_to_skip():
                return read_records(
                    self.source, rows, size=self.size, short_side=self.short_side, resize=self.resize
                )

        return in_batches(load, self.indices, batch_size, self.threads)

    def in_shares(
        self, batch_size: int, compute: Callable[[Records], dict[str, np.ndarray]]
    ) -> Iterator[dict[str, np.ndarray]]:
        """The results of `compute` for all records, in order; each process reads and computes its share."""
        return in_shares(len(self), batch_size, lambda rows: self.only(rows).batches(batch_size), compute)


@dataclass(frozen=True)
class Data:
    """The data of a run of evaluations."""

    parts: dict[str, Part]  # "train", "test"; for scenes of several objects also "one_train" and "one_test"
    labelled: tuple[str, str]  # names of the train and the test part whose single labels are used
    classes: int  # number of classes, 0 without labels
    about: dict  # identity of the images, as plain values, for evaluation.json

    @property
    def single(self) -> bool:
        """Whether records of the labelled parts have a single label."""
        return "label" in self.parts[self.labelled[0]].example()

    @property
    def sets(self) -> bool:
        """Whether records have a set of classes."""
        return "labels" in self.parts["train"].example()


def open_data(config: ConfigDict) -> Data:
    """Open the train and test parts of config.data, as config.eval defines them.

    Raises:
        UserError: a split is missing or empty, or train and test have different classes.
    """
    e, d, size = config.eval, config.data, config.model.image_size

    def part(test: bool) -> Part:
        split, count = (e.test_split, e.test_records) if test else (e.train_split, e.train_records)
        try:
            source = build_source(config, split)
        except UserError as error:
            raise UserError(
                f"{str(error).rstrip('.')}; evaluations read config.eval.train_split={e.train_split!r} and "
                f"test_split={e.test_split!r}: for one folder set both to its name and hold out a share, "
                "e.g. --config.eval.holdout=0.2."
            ) from None
        indices = spread(_held_out(len(source), e.holdout, test), count)
        masks = pathlib.Path(e.masks, split if d.source in ("folder", "packed") else "") if e.masks else None
        composed = isinstance(source, ComposedSource)
        maps = e.mask_classes if masks else len(source.classes) + 1 if composed else 0
        # Scenes are square, so they are resized but not cropped.
        short_side = size if composed else round(size * e.short_side)
        shift = e.mask_shift if masks else 0
        return Part(source, indices, size, short_side, d.threads, masks, maps, shift, e.resize, d.on_error)

    parts, labelled = {"train": part(False), "test": part(True)}, ("train", "test")
    if isinstance(parts["test"].source, ComposedSource):
        # Only scenes with one object have a single label.
        one = {name: p.source.singles() for name, p in parts.items()}
        if one["test"] is not parts["test"].source:
            singles = {f"one_{k}": dataclasses.replace(p, source=one[k]) for k, p in parts.items()}
            parts, labelled = parts | singles, tuple(singles)
    about = {
        "source": d.source, "path": d.path, "holdout": e.holdout, "image_size": size,
        "short_side": parts["test"].short_side, "resize": e.resize,
        "parts": {name: about_part(p) for name, p in parts.items()},
    }  # fmt: skip
    source, other = parts["train"].source, parts["test"].source
    if source.classes != other.classes:
        apart = sorted({*source.classes} ^ {*other.classes})
        raise UserError(
            f"{source!r} and {other!r} have different classes ({', '.join(map(escaped, apart[:4]))} …), so "
            "their labels do not agree; give train and test the same subfolders."
        )
    return Data(parts, labelled, len(source.classes), about)


def about_part(part: Part) -> dict:
    """Identity of a part's images, as plain values, for evaluation.json."""
    images = images_sha256(part.source, part.indices, times=True)
    return {"records": len(part), "of": repr(part.source), "images_sha256": images}


def _held_out(count: int, share: float, test: bool) -> Int[np.ndarray, " N"]:
    """Every (1/share)-th record for test (so that sorted folders give all classes), the others for train."""
    if not share:
        return np.arange(count)
    marks = np.floor(np.arange(1, count + 1) * share) > np.floor(np.arange(count) * share)
    indices = np.flatnonzero(marks == test)
    if not len(indices):
        what = f"config.eval.holdout={share} of {count} images leaves none for {'test' if test else 'train'}"
        raise UserError(f"{what}; give more images or another share.")
    return indices


def spread(indices: Int[np.ndarray, " N"], count: int) -> Int[np.ndarray, " n"]:
    """`count` records at even distances (0: all), so that sorted folders give all classes."""
    if not count or count >= len(indices):
        return indices
    return indices[np.arange(count) * len(indices) // count]


def without_unlabelled(
    columns: dict[str, AnyArray], names: list[str]
) -> tuple[dict[str, np.ndarray], Int[np.ndarray, " N"]]:
    """The named columns and the labels, of the rows that have a label. Raises UserError if none has."""
    known = np.flatnonzero(columns["label"] >= 0)
    if not len(known):
        raise UserError(
            f"none of {len(columns['label'])} images has a class; raise config.eval.train_records and "
            "test_records, or leave out the tasks that need labels."
        )
    if len(known) == len(columns["label"]):
        known = slice(None)  # no copy of columns that may be larger than memory
    return {name: columns[name][known] for name in names}, columns["label"][known].astype(np.int32)


def no_classes(
    train: Int[np.ndarray, " N"], test: Int[np.ndarray, " M"], least: int, what: str = "images"
) -> str:
    """Why a probe that needs `least` training rows cannot be trained on these classes (-1: none), or "".

    what: what the rows are, for the sentence.
    """
    train, test = train[train >= 0], test[test >= 0]
    if len(train) < least or not len(test):
        return f"{len(train)} training and {len(test)} test {what} have a class; it needs {least} and 1"
    return "" if len(np.unique(train)) > 1 else f"all training {what} are of one class"


def multi_hot(labels: Int[AnyArray, "N k"], classes: int) -> Bool[np.ndarray, "N classes"]:
    """Sets of classes, padded with -1, as one row of booleans per image."""
    return (np.asarray(labels)[:, :, None] == np.arange(classes)).any(axis=1)
