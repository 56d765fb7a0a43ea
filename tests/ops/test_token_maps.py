"""Which token looks at an object."""

import numpy as np
import pytest

from sparse_vis.ops.token_maps import object_token

pytestmark = pytest.mark.fast


def maps(*rows):
    """L whose strongest token of each patch is the given digit; with a fourth token that wins nowhere."""
    winners = np.array([[int(c) for c in row] for row in rows])
    return (0.1 + 0.6 * (winners.reshape(-1, 1) == np.arange(4))).astype(np.float32), winners.shape


@pytest.mark.parametrize(
    "rows, token",
    [
        (("00000", "01120", "01120", "00000"), 1),  # 0 is larger, but the border
        (("00000", "02220", "02210", "00000"), 2),  # of two objects the larger one
        (("00111", "00111", "00111", "00111"), 0),  # all are background: the one with less of the border
        (("22000", "22100", "00100", "00000"), 2),  # an object in a corner has 3 of 14 patches of the border
        (("1111", "1111", "1111"), 1),
    ],
)
def test_the_object_is_the_largest_token_that_is_not_at_the_border(rows, token):
    assert object_token(*maps(*rows)) == token
