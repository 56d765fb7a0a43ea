"""A prepared TFDS data set as random-access records (docs/imagenet.md)."""

from __future__ import annotations

from typing import Any

import numpy as np

from sparse_vis.data.folder import sha256_of
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.skipped import MAX_PIXELS


class TfdsSource:
    """A data set that TFDS has prepared as ArrayRecord; neither TensorFlow nor network is needed to read it.

    Args:
        name: e.g. "imagenet2012" or "name/config:1.0.0". split: e.g. "train[:90%]".
        data_dir: folder in which the data set was prepared.

    Raises:
        UserError: the data set is not prepared in data_dir or not as ArrayRecord, the split is unknown or
            empty, or records have no `image`.
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
            reason = str(error).splitlines()[0]
            raise UserError(
                f"TFDS {what} has no split {split!r} ({reason}); correct --config.data.split."
            ) from None
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
        try:
            found = self._records[index]
        except RuntimeError as error:  # the only type that ArrayRecord raises
            reason = str(error).splitlines()[0]
            raise UserError(
                f"record {index} of TFDS data set {self.name!r} cannot be read ({reason}); "
                f"restore or prepare {self.data_dir!r} again."
            ) from None
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
