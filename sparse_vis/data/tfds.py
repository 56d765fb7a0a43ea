"""A prepared TFDS data set as random-access records (docs/imagenet.md)."""

import itertools
from typing import Any

import numpy as np

from sparse_vis.data.bucket_records import UNREADABLE, BucketRecords
from sparse_vis.data.folder import sha256_of
from sparse_vis.runtime.errors import UserError, explained, reason_of
from sparse_vis.runtime.paths import as_path, in_bucket
from sparse_vis.runtime.skipped import MAX_PIXELS


class TfdsSource:
    """A data set that TFDS has prepared as ArrayRecord; neither TensorFlow nor network is needed to read it.

    Args:
        name: e.g. "imagenet2012" or "name/config:1.0.0". split: e.g. "train[:90%]".
        data_dir: folder in which the data set was prepared; it may be in a bucket.

    Raises:
        UserError: the data set is unknown, not prepared or of another format, or lacks the split or images.
    """

    def __init__(self, name: str, *, split: str, data_dir: str, max_pixels: int = MAX_PIXELS):
        import tensorflow_datasets as tfds

        self.name, self.split, self.data_dir, self.max_pixels = name, split, data_dir, max_pixels
        self.about = f"in split {split} of {name}"
        # Not `tfds build`, which needs Apache Beam; docs/imagenet.md.
        prepare = (
            'run `python -c "import tensorflow_datasets as tfds; '
            f"tfds.builder({name!r}, data_dir={data_dir!r}, file_format='array_record')"
            '.download_and_prepare()"`, for which many data sets need `pip install tensorflow-cpu`,'
        )
        if in_bucket(data_dir):  # into which TFDS writes no ArrayRecord
            prepare = "prepare it in a folder of a disk (docs/imagenet.md) and copy that folder there,"
        find = "or set --config.data.path to the folder that holds it"
        what = f"data set {name!r}"
        try:
            builder = tfds.builder(name, data_dir=data_dir, try_gcs=False)
        except (tfds.core.DatasetNotFoundError, FileNotFoundError):
            raise UserError(f"TFDS does not know {what} in {data_dir!r}; {prepare} {find}.") from None
        except (ValueError, AssertionError):  # AssertionError: a version that TFDS does not have
            raise UserError(
                f"TFDS has no data set of the name, configuration or version {name!r}; write tfds:NAME, "
                "tfds:NAME/CONFIG or tfds:NAME:VERSION, e.g. tfds:imagenet2012."
            ) from None
        if not builder.info.splits:
            raise UserError(f"TFDS {what} is not prepared in {data_dir!r}; {prepare} {find}.")
        if "image" not in builder.info.features:
            raise UserError(f"TFDS {what} has no feature 'image'; choose an image data set.")
        try:
            self._records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        except NotImplementedError:
            # TFDS cannot change the format of a prepared folder, so another one is needed.
            raise UserError(
                f"TFDS {what} in {data_dir!r} is not stored as ArrayRecord; {prepare} with another data_dir "
                "and set --config.data.path to it."
            ) from None
        except ValueError as error:
            lacks = f"TFDS {what} has no split {split!r} ({reason_of(error)})"
            raise UserError(f"{lacks}; correct --config.data.split.") from None
        if in_bucket(data_dir):
            self._records.data_source = _InBucket(builder.info, split)
        if not len(self._records):
            raise UserError(f"split {split!r} of TFDS {what} is empty; choose another split.")
        label, sets = (dict(builder.info.features).get(name) for name in ("label", "labels"))
        sets = getattr(sets, "feature", None)  # of a sequence
        # These determine the images and their order.
        self.images_sha256 = sha256_of([builder.info.full_name, split, str(len(self._records))])
        self._labels = [n for n, feature in (("label", label), ("labels", sets)) if hasattr(feature, "names")]
        self.sets = "labels" in self._labels
        self.classes = tuple((label if "label" in self._labels else sets).names) if self._labels else ()

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        what = f"record {index} of TFDS data set {self.name!r} cannot be read"
        with explained(UNREADABLE, what, f"restore or prepare {self.data_dir!r} again."):
            found = self._records[index]
        # TFDS does not return the record's key, so without file names the name is made from the position.
        name = found["file_name"].decode() if "file_name" in found else f"{self.name}/{self.split}#{index}"
        record = {"image": found["image"], "name": name, "max_pixels": self.max_pixels}
        if "label" in self._labels:
            record["label"] = int(found["label"])
        if "labels" in self._labels:
            record["labels"] = np.asarray(found["labels"], np.int32)
        return record

    def __repr__(self) -> str:
        return f"TfdsSource({self.name!r}, split={self.split!r}, data_dir={self.data_dir!r})"


class _InBucket:
    """The bytes of a split's records in a bucket, where the reader of TFDS cannot read."""

    def __init__(self, info: Any, split: str):
        parts = info.splits[split].file_instructions
        files = {part.filename: part.examples_in_shard for part in parts}
        folder = as_path(info.data_dir)
        there = {str(folder / name): size for name, (size, _) in folder.objects().items()}
        if missing := next((file for file in files if file not in there), None):
            raise UserError(f"{missing} of TFDS data set {info.full_name!r} is missing; copy it again.")
        self._records = BucketRecords((file, there[file], count) for file, count in files.items())
        first = dict(zip(files, itertools.accumulate(files.values(), initial=0), strict=False))
        starts = [first[part.filename] + part.skip for part in parts]
        self._positions = np.concatenate(
            [np.arange(start, start + part.take) for start, part in zip(starts, parts, strict=True)]
        )

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: int) -> bytes:
        return self._records[self._positions[index]]
