"""The task `objects` on made-up scenes whose encoder knows the answer."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from sparse_vis.data.records import Records
from sparse_vis.evals.classes.objects import OBJECTS, covered
from sparse_vis.evals.dataset import Data, Part
from sparse_vis.evals.features import Encoder
from sparse_vis.evals.pixels.networks import Networks
from sparse_vis.evals.task import Bench

pytestmark = pytest.mark.fast

SIZE, PATCH, CLASSES = 16, 4, 3


def test_coverage_counts_the_visible_pixels_of_each_patch():
    mask = np.zeros((2, 9, 9), np.uint8)  # a row and a column are left over
    mask[0, :4, 2:6] = 1  # half in the first patch, half in the second
    mask[0, 4:8, 4:8] = 2
    mask[0, 8:] = 2  # in no patch
    mask[1, 1, 1] = 3
    found = covered(mask, (2, 2), 4)
    np.testing.assert_array_equal(found[0], [[0.5, 0.5, 0, 0], [0, 0, 0, 1], [0] * 4, [0] * 4])
    np.testing.assert_array_equal(found[1], [[0] * 4, [0] * 4, [1, 0, 0, 0], [0] * 4])


class Corners:
    """Scenes of two squares, in two corners of a grid of 4 x 4 patches, of brightness 50 (class + 1)."""

    classes = tuple("abc")

    def __init__(self, count, seed):
        rng = np.random.default_rng(seed)
        self.labels = rng.integers(0, CLASSES, (count, 2), np.int32)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        image, mask = np.zeros((SIZE, SIZE, 3), np.uint8), np.zeros((SIZE, SIZE), np.uint8)
        for k, (label, place) in enumerate(zip(self.labels[index], (slice(0, 8), slice(8, 16)), strict=True)):
            mask[place, place] = k + 1
            image[place, place] = 50 * (label + 1)
        return {
            "image": image,
            "mask": mask,
            "labels": self.labels[index],
            "objects": self.labels[index],  # one object a class
            "name": str(index),
        }


def one_hot(values):
    return (np.round(np.asarray(values)[..., None] / 50) == np.arange(CLASSES + 1)).astype(np.float32)


def features(images, wanted):
    """Token k < 2 looks at the k-th corner and holds its class; the last token looks at the rest."""
    patches = images[:, 2::PATCH, 2::PATCH, 0].reshape(len(images), -1).astype(float)
    corner = np.full((4, 4), 2)
    corner[:2, :2], corner[2:, 2:] = 0, 1
    L = np.tile((corner.reshape(-1, 1) == np.arange(3)).astype(np.float32), (len(images), 1, 1))
    values = np.stack([patches[:, 0], patches[:, -1], np.zeros(len(images))], axis=1)
    return {"sparse": one_hot(values), "spatial": L, "dense": one_hot(patches)}


def measured(gives=("sparse", "spatial", "dense"), found=features, source=Corners):
    parts = {
        name: Part(source(count, seed), np.arange(count), SIZE, SIZE, 1)
        for name, count, seed in (("train", 120, 0), ("test", 80, 1))
    }
    data = Data(parts, ("train", "test"), CLASSES, {})
    reducers = {part: set(kept) for part, kept in OBJECTS.reducers(data).items()}
    bench = Bench(Encoder("made-up", gives, found), data, Networks("", "", "", 1), 40, 0, reducers)
    return OBJECTS.measure(bench, ConfigDict())


def test_the_covering_token_tells_the_class_and_the_mean_does_not():
    result = measured()
    for name in ("token", "S by L", "U by mask"):
        assert result.metrics[name] == dict.fromkeys(
            ("knn", "linear", "recall1", "recall5", "same_object"), 1.0
        )
    # The mean is equal for both objects of a scene; by symmetry it is right for one of two different classes.
    test = Corners(80, 1).labels
    different = np.mean(test[:, 0] != test[:, 1])
    assert abs(result.metrics["mean S"]["knn"] - (1 - different / 2)) < 0.05
    counts = np.bincount(test.ravel())
    assert result.details == {
        "train_objects": 240, "test_objects": 160, "most_frequent_class": counts.max() / counts.sum()
    }  # fmt: skip


def test_a_token_that_looks_elsewhere_does_not_tell():
    def elsewhere(images, wanted):
        out = features(images, wanted)
        return {**out, "spatial": out["spatial"][:, ::-1]}  # each token looks at the other corner

    test = Corners(80, 1).labels
    swapped = np.mean(test[:, 0] == test[:, 1])
    found = measured(found=elsewhere).metrics
    # Trained on wrong tokens, too: no better than guessing from the other object's class.
    assert found["token"]["knn"] < 0.6 and found["U by mask"]["knn"] == 1.0 and swapped < 0.5


def test_an_encoder_without_tokens_has_patches_alone():
    assert measured(gives=("dense",)).metrics.keys() == {"U by mask"}


def test_scenes_without_objects_or_of_one_class_have_no_numbers_and_a_reason():
    class Changed(Corners):
        label = -1

        def __init__(self, count, seed):
            super().__init__(count, seed)
            self.labels = np.full_like(self.labels, self.label)

    class OneClass(Changed):
        label = 2

    for source, reason in (
        (Changed, "0 training and 0 test objects have a class; it needs 6 and 1"),
        (OneClass, "all training objects are of one class"),
    ):
        found = measured(source=source)
        assert not found.metrics and found.absent == {"objects": reason}


def test_reducers_give_every_object_a_row():
    images = np.stack([Corners(3, 0)[i]["image"] for i in range(3)])
    labels = np.pad(Corners(3, 0).labels, ((0, 0), (0, 2)), constant_values=-1)
    masks = np.stack([Corners(3, 0)[i]["mask"] for i in range(3)])
    records = Records(image=images, name=("a",) * 3, label=None, mask=masks, labels=labels, objects=None)
    kept = OBJECTS.reducers(Data({}, ("train", "test"), CLASSES, {}))["test"]
    columns = {}
    for reducer in kept:
        columns |= reducer.reduce(features(images, ()), records, None)
    assert columns["object_S"].shape == (3, 4, 4) and columns["object_label"].shape == (3, 4)
    np.testing.assert_array_equal(columns["object_S"][:, 2:], 0)
    assert "object_number" not in columns  # as records.objects is None


def test_the_same_object_is_not_the_same_class():
    """With an object's number other than its class, features of the class alone find it at chance."""

    class Two(Corners):
        def __getitem__(self, index):
            record = super().__getitem__(index)
            return {
                **record,
                "objects": 2 * record["labels"] + np.array([index % 2, (index // 2) % 2], np.int32),
            }

    found = measured(source=Two).metrics["token"]
    assert found["recall1"] == 1.0 and 0.3 < found["same_object"] < 0.7
