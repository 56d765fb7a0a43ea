"""The linear probe against scikit-learn's logistic regression and known answers; mAP against scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.preprocessing import StandardScaler

from sparse_vis.errors import UserError
from sparse_vis.evals import linear


def problem(seed, count=2000, classes=7, width=20, noise=1.0):
    """Gaussian classes; features of very different scale and offset; half train, half test."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, width)) * 0.6
    labels = rng.integers(0, classes, count)
    x = centres[labels] + noise * rng.normal(size=(count, width))
    x = (x * np.logspace(-2, 2, width) + np.linspace(-50, 50, width)).astype(np.float32)
    half = count // 2
    return x[:half], labels[:half], x[half:], labels[half:]


def test_accuracy_is_that_of_logistic_regression():
    train_x, train_y, test_x, test_y = problem(0)
    result = linear.linear_accuracy(train_x, train_y, test_x, test_y, classes=7)
    scaler = StandardScaler().fit(train_x)
    fit_x, score_x = scaler.transform(train_x), scaler.transform(test_x)
    # The best of several penalties, chosen on test: if anything too good.
    expected = max(
        LogisticRegression(C=c, max_iter=500).fit(fit_x, train_y).score(score_x, test_y)
        for c in (0.003, 0.03, 0.3)
    )
    assert 0.5 < expected < 0.95  # otherwise the comparison says nothing
    assert abs(result.accuracy - expected) < 0.02
    assert result.accuracy < result.top5 < 1
    assert len(result.validation) == 13
    assert result.validation[linear.LEARNING_RATES.index(result.learning_rate)] == max(result.validation)


def test_random_labels_give_chance():
    train_x, _, test_x, _ = problem(1)
    labels = np.random.default_rng(5).integers(0, 10, 2000)
    result = linear.linear_accuracy(train_x, labels[:1000], test_x, labels[1000:], classes=10, steps=100)
    assert abs(result.accuracy - 0.1) < 0.05
    assert abs(result.top5 - 0.5) < 0.08


def test_top5_is_one_with_five_classes_and_equal_logits_favour_nobody():
    rng = np.random.default_rng(2)
    constant, labels = np.ones((400, 3), np.float32), rng.permutation(np.repeat(np.arange(4), 100))
    result = linear.linear_accuracy(constant, labels, constant, labels, classes=4, steps=20)
    assert result.top5 == 1
    assert result.accuracy == 0.25  # a constant feature says nothing: one class is guessed throughout


def test_feature_that_never_varied_in_training_is_dropped():
    train_x, train_y, test_x, test_y = problem(3)
    # Constant but for rounding, as a dead unit's output is.
    dead_train = np.float32(0.3) + 3e-8 * np.random.default_rng(1).integers(-2, 3, (len(train_x), 1))
    dead_test = np.random.default_rng(0).normal(size=(len(test_x), 1)).astype(np.float32) * 1e4
    plain = linear.linear_accuracy(train_x, train_y, test_x, test_y, classes=7, steps=100)
    padded = linear.linear_accuracy(
        np.hstack([train_x, dead_train]),
        train_y,
        np.hstack([test_x, dead_test]),
        test_y,
        classes=7,
        steps=100,
    )
    assert abs(plain.accuracy - padded.accuracy) < 0.005


def test_seed_decides_everything_and_test_labels_nothing():
    train_x, train_y, test_x, test_y = problem(4)

    def probe(seed, labels=test_y):
        return linear.linear_accuracy(train_x, train_y, test_x, labels, classes=7, steps=60, seed=seed)

    assert probe(0) == probe(0)
    assert probe(0).validation != probe(1).validation
    other = probe(0, np.roll(test_y, 1))
    assert (other.learning_rate, other.validation) == (probe(0).learning_rate, probe(0).validation)
    assert other.accuracy < probe(0).accuracy - 0.2


def test_blocks_change_nothing(monkeypatch):
    train_x, train_y, test_x, test_y = problem(5)
    whole = linear.linear_accuracy(train_x, train_y, test_x, test_y, classes=7, steps=60)
    monkeypatch.setattr(linear, "BLOCK", 300)
    parts = linear.linear_accuracy(train_x, train_y, test_x, test_y, classes=7, steps=60)
    assert abs(whole.accuracy - parts.accuracy) <= 0.001  # rounding may tip a single row
    np.testing.assert_allclose(whole.validation, parts.validation, atol=0.011)


def test_several_feature_sets_equal_single_calls():
    train_x, train_y, test_x, test_y = problem(6)
    sets = linear.linear_accuracies(
        {"sparse": train_x, "dense": train_x[:, 9:]},
        train_y,
        {"sparse": test_x, "dense": test_x[:, 9:]},
        test_y,
        classes=7,
    )
    assert sets["dense"] == linear.linear_accuracy(train_x[:, 9:], train_y, test_x[:, 9:], test_y, classes=7)
    assert sets["sparse"].accuracy > sets["dense"].accuracy


def test_bad_input_is_named():
    train_x, train_y, test_x, test_y = problem(7)
    with pytest.raises(UserError, match="of 4 training samples holds out 0"):
        linear.linear_accuracy(train_x[:4], train_y[:4], test_x, test_y, classes=7)
    with pytest.raises(UserError, match="test labels go from -1"):
        linear.linear_accuracy(train_x, train_y, test_x, test_y - 1, classes=7)
    with pytest.raises(UserError, match="train features hold NaN"):
        linear.linear_accuracy(train_x * np.inf, train_y, test_x, test_y, classes=7)


@pytest.mark.parametrize("ties", [False, True])
def test_mean_average_precision_equals_sklearn(ties):
    rng = np.random.default_rng(8)
    scores = rng.normal(size=(200, 6))
    scores = np.round(scores) if ties else scores
    targets = rng.random((200, 6)) < np.linspace(0.02, 0.6, 6) + 0.1 * (scores > 0)
    expected = average_precision_score(targets, scores, average="macro")
    assert linear.mean_average_precision(scores, targets) == pytest.approx(expected, abs=1e-12)
    # A class without any positive changes nothing.
    wide = np.hstack([targets, np.zeros((200, 1), bool)]).astype(np.int32)
    more = np.hstack([scores, scores[:, :1]])
    assert linear.mean_average_precision(more, wide) == pytest.approx(expected, abs=1e-12)


def test_mean_average_precision_needs_a_positive():
    with pytest.raises(UserError, match="hold none"):
        linear.mean_average_precision(np.zeros((4, 2)), np.zeros((4, 2), bool))
