"""kNN against a plain float64 loop and scikit-learn."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from sparse_vis.evals.classes import knn
from sparse_vis.evals.features import Split
from sparse_vis.runtime.errors import UserError

pytestmark = pytest.mark.fast


def problem(seed, train=300, test=90, classes=5, width=12):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, width))
    labels = rng.integers(0, classes, train + test)
    x = (centres[labels] + 1.5 * rng.normal(size=(train + test, width))) * rng.uniform(
        0.1, 9, (train + test, 1)
    )
    x = x.astype(np.float32)
    return Split(x[:train], labels[:train]), Split(x[train:], labels[train:])


def loop(train, test_x, k, temperature, classes):
    """The definition, one pair of rows at a time."""
    predicted = []
    for row in test_x.astype(np.float64):
        cosine = [row @ t / np.linalg.norm(row) / np.linalg.norm(t) for t in train.x.astype(np.float64)]
        votes = [0.0] * classes
        for i in sorted(range(len(cosine)), key=lambda i: -cosine[i])[:k]:
            votes[train.y[i]] += np.exp(cosine[i] / temperature)
        predicted.append(int(np.argmax(votes)))
    return np.array(predicted)


@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_predictions_equal_the_loop(temperature):
    train, test = problem(0)
    ks = (40, 1, 300)
    predicted = knn.knn_predict(train, test.x, classes=5, ks=ks, temperature=temperature)
    assert tuple(predicted) == ks
    for k in ks:
        np.testing.assert_array_equal(predicted[k], loop(train, test.x, k, temperature, 5))


def test_blocks_change_nothing(monkeypatch):
    train, test = problem(1)
    whole = knn.knn_predict(train, test.x, classes=5, ks=(3, 30))
    monkeypatch.setattr(knn, "GALLERY_BLOCK", 17)  # smaller than k, and neither block divides its set
    monkeypatch.setattr(knn, "QUERY_BLOCK", 32)
    read, unit = [], knn.unit
    monkeypatch.setattr(knn, "unit", lambda rows: read.append(rows) or unit(rows))
    parts = knn.knn_predict(train, test.x, classes=5, ks=(3, 30))
    # The gallery can be larger than the device's memory and its upload slow: each row is read once.
    gallery = [rows for rows in read if np.shares_memory(rows, train.x)]
    np.testing.assert_array_equal(np.concatenate(gallery), train.x)
    for k in (3, 30):
        np.testing.assert_array_equal(parts[k], whole[k])
        assert len(np.unique(whole[k])) > 1


def test_filling_of_the_last_block_is_never_a_neighbour(monkeypatch):
    monkeypatch.setattr(knn, "GALLERY_BLOCK", 4)
    train_x = -np.array([[1, 0.1], [1, 1], [1, 2], [1, 3], [1, 4]], np.float32)  # all cosines are negative
    test_x = np.array([[1, -0.2], [0.1, 1]], np.float32)
    predicted = knn.knn_predict(Split(train_x, np.array([3, 0, 2, 1, 4])), test_x, classes=5, ks=(1,))
    cosine = test_x @ (train_x / np.linalg.norm(train_x, axis=1, keepdims=True)).T
    np.testing.assert_array_equal(predicted[1], np.array([3, 0, 2, 1, 4])[cosine.argmax(axis=1)])
    assert predicted[1][1] != 4


def test_accuracy_equals_sklearn():
    train, test = problem(2)
    accuracy = knn.knn_accuracy(train, test, classes=5, ks=(10, 50))
    for k in (10, 50):
        model = KNeighborsClassifier(
            k, metric="cosine", weights=lambda d: np.exp((1 - d) / 0.07), algorithm="brute"
        )
        assert accuracy[k] == pytest.approx(model.fit(train.x, train.y).score(test.x, test.y), abs=1e-9)
        assert 0.3 < accuracy[k] < 1


def test_small_temperature_stays_finite():
    train, test = problem(3)
    predicted = knn.knn_predict(train, test.x, classes=5, ks=(1, 20), temperature=1e-3)
    assert np.mean(predicted[1] == predicted[20]) > 0.9


def test_bad_input_is_named():
    train, test = problem(4)
    with pytest.raises(UserError, match=r"k=301 .* 300 training samples"):
        knn.knn_accuracy(train, test, classes=5, ks=(10, 301))
    with pytest.raises(UserError, match="k=0"):
        knn.knn_accuracy(train, test, classes=5, ks=(0,))
    with pytest.raises(UserError, match="train labels go from 0 to 4"):
        knn.knn_predict(train, test.x, classes=4, ks=(1,))
    with pytest.raises(UserError, match="89 labels"):
        knn.knn_accuracy(train, Split(test.x, test.y[1:]), classes=5, ks=(1,))
    test.x[3, 2] = np.nan
    with pytest.raises(UserError, match="test features contain NaN"):
        knn.knn_accuracy(train, test, classes=5, ks=(1,))
