"""Codings of S and L: bytes by hand, errors within their bounds."""

import numpy as np
import pytest

from sparse_vis.evals.factors.rate import as_float, as_int8, codings, dense_code, top_k

pytestmark = pytest.mark.fast
rng = np.random.default_rng(0)
S = rng.normal(size=(3, 4, 32)).astype(np.float32)
L = rng.dirichlet(0.3 * np.ones(4), size=(3, 10)).astype(np.float32)


def test_floats():
    exact = as_float(S, "float32")
    np.testing.assert_array_equal(exact.values, S)
    assert exact.bytes == 4 * 4 * 32 and as_float(S, "float16").bytes == 2 * 4 * 32
    np.testing.assert_allclose(as_float(S, "float16").values, S, rtol=2**-10, atol=1e-7)


def test_int8_is_within_half_a_step_of_its_row():
    coded = as_int8(S)
    assert coded.bytes == 4 * 32 + 4 * 2
    step = np.abs(S).max(-1, keepdims=True) / 127
    assert (np.abs(coded.values - S) <= 0.51 * step).all()
    assert (as_int8(np.zeros((1, 2, 3), np.float32)).values == 0).all()


def test_top_k_keeps_the_largest_and_sums_to_one():
    whole, two, one = (top_k(L, k) for k in (4, 2, 1))
    assert (whole.bytes, two.bytes, one.bytes) == (80, 40, 20)
    np.testing.assert_allclose(whole.values, L, atol=1.5 / 255)
    for coded, k in ((two, 2), (one, 1)):
        np.testing.assert_allclose(coded.values.sum(-1), 1, atol=1e-6)
        assert ((coded.values > 0).sum(-1) <= k).all()
    assert (one.values.argmax(-1) == L.argmax(-1)).all() and (one.values.max(-1) == 1).all()


def test_the_curve_gets_cheaper():
    sizes = [s.bytes + l.bytes for s, l in codings(S, L).values()]
    assert list(codings(S, L)) == ["float32", "float16", "int8", "int8, top 2", "int8, top 1"]
    # At r = 4 two entries with their tokens cost as much as four of int8, but for the scales.
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == 4 * (128 + 40)


def test_dense_features_at_equal_bytes():
    basis = np.linalg.qr(rng.normal(size=(16, 3)))[0].T
    U = (rng.normal(size=(5, 10, 3)) * [5, 3, 1] @ basis + 2).astype(np.float32)
    code = dense_code(U, budget=10 * (3 + 2))
    coded = code.coded(U)
    assert code.components.shape == (3, 16) and coded.bytes == 50
    np.testing.assert_allclose(coded.values, U, atol=0.2)
    fewer = dense_code(U, budget=49)
    assert fewer.components.shape == (2, 16) and fewer.coded(U).bytes == 40
    assert abs(fewer.components @ basis[2]).max() < 0.2  # it leaves out the weakest direction
    assert dense_code(U, budget=29) is None
