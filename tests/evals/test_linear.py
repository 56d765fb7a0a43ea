"""The linear probe against scikit-learn's logistic regression and known answers."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from sparse_vis.evals.classes import linear
from sparse_vis.evals.classes.linear import SweepProtocol
from sparse_vis.runtime.errors import UserError


def problem(seed, count=2000, classes=7, width=20, noise=1.0):
    """Gaussian classes; features of very different scale and offset; half train, half test."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, width)) * 0.6
    labels = rng.integers(0, classes, count)
    x = centres[labels] + noise * rng.normal(size=(count, width))
    x = (x * np.logspace(-2, 2, width) + np.linspace(-50, 50, width)).astype(np.float32)
    half = count // 2
    return x[:half], labels[:half], x[half:], labels[half:]


def probe(train_x, train_y, test_x, test_y, *, classes, **protocol):
    """The sweep with one feature."""
    return linear.sweep(
        {"x": train_x}, train_y, {"x": test_x}, test_y, classes=classes, protocol=SweepProtocol(**protocol)
    ).chosen


def test_accuracy_is_that_of_logistic_regression():
    train_x, train_y, test_x, test_y = problem(0)
    result = probe(train_x, train_y, test_x, test_y, classes=7)
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
    validation = result.validation["x"]
    assert len(validation) == 13
    assert validation[linear.SweepProtocol().learning_rates.index(result.learning_rate)] == max(validation)


def test_random_labels_give_chance():
    train_x, _, test_x, _ = problem(1)
    labels = np.random.default_rng(5).integers(0, 10, 2000)
    result = probe(train_x, labels[:1000], test_x, labels[1000:], classes=10, steps=100)
    assert abs(result.accuracy - 0.1) < 0.05
    assert abs(result.top5 - 0.5) < 0.08


def test_top5_is_one_with_five_classes_and_equal_logits_favour_nobody():
    rng = np.random.default_rng(2)
    constant, labels = np.ones((400, 3), np.float32), rng.permutation(np.repeat(np.arange(4), 100))
    result = probe(constant, labels, constant, labels, classes=4, steps=20)
    assert result.top5 == 1
    assert result.accuracy == 0.25  # a constant feature says nothing: one class is guessed throughout


def test_feature_that_never_varied_in_training_is_dropped():
    train_x, train_y, test_x, test_y = problem(3)
    # Constant but for rounding, as a dead unit's output is.
    dead_train = np.float32(0.3) + 3e-8 * np.random.default_rng(1).integers(-2, 3, (len(train_x), 1))
    dead_test = np.random.default_rng(0).normal(size=(len(test_x), 1)).astype(np.float32) * 1e4
    plain = probe(train_x, train_y, test_x, test_y, classes=7, steps=100)
    padded = probe(
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

    def of(seed, labels=test_y):
        return probe(train_x, train_y, test_x, labels, classes=7, steps=60, seed=seed)

    assert of(0) == of(0)
    assert of(0).validation != of(1).validation
    other = of(0, np.roll(test_y, 1))
    assert (other.learning_rate, other.validation) == (of(0).learning_rate, of(0).validation)
    assert other.accuracy < of(0).accuracy - 0.2


def test_blocks_change_nothing(monkeypatch):
    train_x, train_y, test_x, test_y = problem(5)
    whole = probe(train_x, train_y, test_x, test_y, classes=7, steps=60)
    monkeypatch.setattr(linear, "BLOCK", 300)
    parts = probe(train_x, train_y, test_x, test_y, classes=7, steps=60)
    assert abs(whole.accuracy - parts.accuracy) <= 0.001  # rounding may tip a single row
    np.testing.assert_allclose(whole.validation["x"], parts.validation["x"], atol=0.011)


def test_features_of_different_widths_train_together_as_each_alone():
    train_x, train_y, test_x, test_y = problem(6)
    train = {"wide": train_x, "narrow": train_x[:, 9:], "one": train_x[:, 3:4]}
    test = {"wide": test_x, "narrow": test_x[:, 9:], "one": test_x[:, 3:4]}
    together = linear.sweep(train, train_y, test, test_y, classes=7, protocol=SweepProtocol(steps=60))
    for name in train:
        alone = probe(train[name], train_y, test[name], test_y, classes=7, steps=60)
        ours = together.alone[name]
        assert ours.feature == name and ours.learning_rate == alone.learning_rate
        assert abs(ours.accuracy - alone.accuracy) <= 0.002 and abs(ours.top5 - alone.top5) <= 0.002
        np.testing.assert_allclose(ours.validation[name], alone.validation["x"], atol=0.011)
    assert together.alone["wide"].accuracy > together.alone["narrow"].accuracy > 0.3


def test_filling_up_moves_no_weight():
    """The padded columns of the narrow feature stay zero; its others are those of an unpadded fit."""
    train_x, train_y, *_ = problem(9, count=400)
    x = {"wide": train_x, "narrow": train_x[:, :5]}
    protocol = SweepProtocol(learning_rates=(0.01, 0.1), steps=30, batch_size=64)
    _, held_out = linear.fit_all(x, train_y, 7, protocol)
    fitted = np.setdiff1d(np.arange(len(train_y)), held_out)

    def fit(*names):
        xs, moments = [x[n] for n in names], [linear._moments(x[n], fitted) for n in names]
        return linear._fit(xs, train_y, fitted, moments, 7, protocol, np.random.default_rng(1))

    (weight, bias), (alone, alone_bias) = fit("wide", "narrow"), fit("narrow")
    assert weight.shape == (2, 2, 20, 7) and len(held_out) == 20
    assert (np.asarray(weight[1, :, 5:]) == 0).all() and np.abs(alone).min(axis=(1, 2, 3)).max() > 0
    np.testing.assert_allclose(weight[1, :, :5], alone[0], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(bias[1], alone_bias[0], rtol=1e-3, atol=1e-5)


def test_sweep_chooses_on_the_held_out_part_not_on_test():
    train_x, train_y, test_x, test_y = problem(8, count=800)
    # "trap" is noisy in train and clean in test: whoever peeks at test would choose it.
    clean = np.eye(7, dtype=np.float32)
    noise = np.random.default_rng(0).normal(size=(400, 7)).astype(np.float32)
    train = {"trap": clean[train_y] + noise, "good": train_x, "weak": train_x[:, :2]}
    test = {"trap": clean[test_y], "good": test_x, "weak": test_x[:, :2]}
    found = linear.sweep(train, train_y, test, test_y, classes=7, protocol=SweepProtocol(steps=60))
    result, single = found.chosen, found.alone
    assert single["trap"].accuracy > single["good"].accuracy
    assert result.feature == "good"
    assert list(result.validation) == ["trap", "good", "weak"]
    assert max(result.validation["good"]) > max(result.validation["weak"])
    assert (result.accuracy, result.learning_rate) == (single["good"].accuracy, single["good"].learning_rate)


@pytest.mark.fast
def test_candidates_are_what_the_features_allow():
    rng = np.random.default_rng(3)
    S, concat, cls, U = (rng.normal(size=(4, f)).astype(np.float32) for f in (3, 6, 3, 3))
    found = linear.candidates({"mean_S": S, "concat_S": concat, "cls": cls, "mean_U": U, "psnr": S[:, 0]})
    assert list(found) == ["mean_S", "concat_S", "cls", "cls_mean_U"]
    np.testing.assert_array_equal(found["concat_S"], concat)
    np.testing.assert_array_equal(found["cls_mean_U"], np.hstack([cls, U]))
    assert list(linear.candidates({"mean_U": U})) == ["mean_U"]
    assert list(linear.candidates({"mean_U": U, "cls": cls})) == ["cls", "cls_mean_U"]
    assert list(linear.candidates({"mean_U": U, "mean_S": S})) == ["mean_S"]


def test_bad_input_is_named():
    train_x, train_y, test_x, test_y = problem(7)
    with pytest.raises(UserError, match="of 4 training samples leaves 0 for validation"):
        probe(train_x[:4], train_y[:4], test_x, test_y, classes=7)
    with pytest.raises(UserError, match=r"test \(x\) labels go from -1"):
        probe(train_x, train_y, test_x, test_y - 1, classes=7)
    with pytest.raises(UserError, match=r"train \(x\) features contain NaN"):
        probe(train_x * np.inf, train_y, test_x, test_y, classes=7)
