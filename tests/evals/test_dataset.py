"""Which records evaluations read."""

import numpy as np
import pytest
from PIL import Image

from sparse_vis.config.defaults import default_config
from sparse_vis.evals.dataset import multi_hot, open_data, without_unlabelled
from sparse_vis.runtime.errors import UserError

pytestmark = pytest.mark.fast


def folder(path, per_class=10, classes=("cat", "dog", "owl")):
    for c, name in enumerate(classes):
        (path / name).mkdir(parents=True)
        for i in range(per_class):
            Image.new("RGB", (20, 30), (10 * c, i, 0)).save(path / name / f"{i}.png")
    return path


def config_for(path, **changed):
    config = default_config()
    config.model.update(image_size=16, patch=4)
    config.data.update(source="folder", path=str(path), threads=2)
    config.eval.update(train_records=0, test_records=0, **changed)
    return config


def labels_of(part):
    return np.concatenate([records.label for records in part.batches(4)])


def test_train_and_test_subfolders(tmp_path):
    folder(tmp_path / "train"), folder(tmp_path / "test", per_class=2)
    data = open_data(config_for(tmp_path))
    assert {name: len(part) for name, part in data.parts.items()} == {"train": 30, "test": 6}
    assert data.labelled == ("train", "test") and data.classes == 3 and not data.sets
    records = next(data.parts["test"].batches(6))
    assert records.image.shape == (6, 16, 16, 3) and data.parts["test"].short_side == 18
    np.testing.assert_array_equal(records.label, [0, 0, 1, 1, 2, 2])


def test_one_folder_with_a_share_held_out(tmp_path):
    folder(tmp_path)
    data = open_data(config_for(tmp_path, train_split="", test_split="", holdout=0.2))
    train, test = data.parts["train"], data.parts["test"]
    assert len(train) == 24 and len(test) == 6 and not set(train.indices) & set(test.indices)
    assert sorted([*train.indices, *test.indices]) == list(range(30))
    np.testing.assert_array_equal(np.bincount(labels_of(test)), [2, 2, 2])  # sorted, yet of every class
    again = open_data(config_for(tmp_path, train_split="", test_split="", holdout=0.2))
    np.testing.assert_array_equal(again.parts["test"].indices, test.indices)
    assert data.about == again.about and data.about["holdout"] == 0.2


def test_fewer_records_are_spread_over_all(tmp_path):
    folder(tmp_path / "train"), folder(tmp_path / "test")
    config = config_for(tmp_path)
    config.eval.update(train_records=6, test_records=100)
    data = open_data(config)
    np.testing.assert_array_equal(labels_of(data.parts["train"]), [0, 0, 1, 1, 2, 2])
    assert len(data.parts["test"]) == 30


def test_scenes_have_one_digit_where_labels_count():
    config = default_config()
    config.model.update(image_size=32, patch=8)
    config.data.scenes.update(size=32, train_records=50, eval_records=20)
    config.eval.update(train_records=10, test_records=0)
    data = open_data(config)
    assert data.labelled == ("one_train", "one_test") and data.sets and data.classes == 10
    assert (labels_of(data.parts["one_test"]) >= 0).all() and (labels_of(data.parts["test"]) < 0).any()
    assert data.parts["train"].map_classes == 11 and data.parts["train"].short_side == 32
    config.data.scenes.digits = "one"
    assert set(open_data(config).parts) == {"train", "test"}


def test_bad_splits_are_one_sentence_with_the_remedy(tmp_path):
    folder(tmp_path / "train", per_class=1)

    def refused(match, path=tmp_path, **changed):
        with pytest.raises(UserError, match=match) as error:
            open_data(config_for(path, **changed))
        assert "\n" not in str(error.value)

    refused(r"test' does not exist.*test_split='test'.*--config\.eval\.holdout=0\.2")
    folder(tmp_path / "test", per_class=1, classes=("cat", "dog", "wolf", "owl"))
    refused(r"have different classes \(wolf …\), .*give train and test the same subfolders")
    refused(
        "holdout=0.1 of 3 images leaves none for test", train_split="train", test_split="train", holdout=0.1
    )


def test_sets_and_single_labels():
    sets = multi_hot(np.array([[2, 0, -1], [-1, -1, -1], [1, 1, 1]]), 4)
    np.testing.assert_array_equal(sets, [[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0]])
    x, y = without_unlabelled({"label": np.array([1, -1, 0]), "f": np.arange(3.0), "g": np.ones(3)}, ["f"])
    assert list(x) == ["f"] and x["f"].tolist() == [0, 2] and y.tolist() == [1, 0]
