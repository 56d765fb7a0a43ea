"""mAP against scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from sparse_vis.errors import UserError
from sparse_vis.evals.multilabel import mean_average_precision

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
    with pytest.raises(UserError, match="hold none"):
        mean_average_precision(np.zeros((4, 2)), np.zeros((4, 2), bool))
