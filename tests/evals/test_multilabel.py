"""The multi-label probe and mAP against scikit-learn."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from sparse_vis.evals.classes.linear import mean_average_precision, multilabel_probe
from sparse_vis.runtime.errors import UserError

pytestmark = pytest.mark.fast


@pytest.mark.parametrize("ties", [False, True])
def test_mean_average_precision_equals_sklearn(ties):
    rng = np.random.default_rng(8)
    scores = rng.normal(size=(200, 6))
    scores = np.round(scores) if ties else scores
    targets = rng.random((200, 6)) < np.linspace(0.02, 0.6, 6) + 0.1 * (scores > 0)
    expected = average_precision_score(targets, scores, average="macro")
    assert mean_average_precision(scores, targets) == pytest.approx(expected, abs=1e-12)
    # A class without any positive changes nothing.
    wide = np.hstack([targets, np.zeros((200, 1), bool)]).astype(np.int32)
    more = np.hstack([scores, scores[:, :1]])
    assert mean_average_precision(more, wide) == pytest.approx(expected, abs=1e-12)


def test_mean_average_precision_needs_a_positive():
    with pytest.raises(UserError, match="contain none"):
        mean_average_precision(np.zeros((4, 2)), np.zeros((4, 2), bool))


def test_probe_is_as_good_as_one_logistic_regression_per_class():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1200, 8)).astype(np.float32)
    y = x @ rng.normal(size=(8, 4)) + 2 * rng.normal(size=(1200, 4)) > 1
    train = {"noise": rng.normal(size=(700, 3)).astype(np.float32), "x": x[:700] * 30 + 5}
    test = {"noise": rng.normal(size=(500, 3)).astype(np.float32), "x": x[700:] * 30 + 5}
    result = multilabel_probe(train, y[:700], test, y[700:])
    models = [LogisticRegression().fit(x[:700], y[:700, c]) for c in range(4)]
    scores = np.stack([model.decision_function(x[700:]) for model in models], axis=1)
    expected = average_precision_score(y[700:], scores, average="macro")
    assert 0.5 < expected < 0.95
    assert result.feature == "x" and abs(result.mean_average_precision - expected) < 0.02
    assert len(result.validation["x"]) == 13 and max(result.validation["noise"]) < expected - 0.1
    with pytest.raises(UserError, match="one row per image and one column per class"):
        multilabel_probe(train, y[:700], test, y)
