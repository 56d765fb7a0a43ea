"""Rate and distortion: bytes per image of (S, L) in several codings, and the decoded values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from sparse_vis.evals.features import AnyArray


@dataclass(frozen=True)
class Coded:
    """Arrays after a lossy coding.

    Attributes:
        values: float32, decoded, in the original shape. bytes: per image, without a header.
    """

    values: np.ndarray
    bytes: int


def as_float(x: Float[AnyArray, "N rows columns"], dtype: str) -> Coded:
    """Rounded to "float32" or "float16"."""
    coded = np.asarray(x).astype(dtype)
    return Coded(coded.astype(np.float32), coded[0].nbytes)


def as_int8(x: Float[AnyArray, "N rows columns"]) -> Coded:
    """Each row in int8 with a float16 scale, the row's largest magnitude / 127."""
    x = np.asarray(x, np.float32)
    # The scale is rounded up, so that no value divided by it exceeds 127.
    scale = np.nextafter((np.abs(x).max(-1, keepdims=True) / 127).astype(np.float16), np.float16(np.inf))
    scale = scale.astype(np.float32)
    integers = np.rint(x / scale).astype(np.int8)
    return Coded(integers * scale, x[0].size + 2 * x.shape[1])


def top_k(L: Float[AnyArray, "N n r"], k: int) -> Coded:
    """The k largest entries of every row as (token, weight in 1/255), one byte each; rows sum to one again.

    Args:
        L: (N, n, r) localization matrices with r <= 256. k: entries kept, 1 to r.
    """
    L = np.asarray(L, np.float32)
    kept = np.argsort(-L, axis=-1, kind="stable")[..., :k]
    weights = np.take_along_axis(L, kept, axis=-1)
    integers = np.rint(255 * weights / weights.sum(-1, keepdims=True))
    sparse = np.zeros_like(L)
    np.put_along_axis(sparse, kept, integers / integers.sum(-1, keepdims=True), axis=-1)
    return Coded(sparse, 2 * k * L.shape[1])


def codings(S: Float[AnyArray, "N r d"], L: Float[AnyArray, "N n r"]) -> dict[str, tuple[Coded, Coded]]:
    """Name -> (S, L) in float32, float16, int8, and int8 S with the 4, 2 or 1 largest entries of L's rows."""
    S8 = as_int8(S)
    out = {name: (as_float(S, name), as_float(L, name)) for name in ("float32", "float16")}
    out["int8"] = (S8, as_int8(L))
    return out | {f"int8, top {k}": (S8, top_k(L, k)) for k in (4, 2, 1) if k < L.shape[-1]}


@dataclass(frozen=True)
class DenseCode:
    """Principal components of dense features, as many as fit a budget of bytes.

    Attributes:
        mean: (d,). components: (k, d), orthonormal rows.
    """

    mean: np.ndarray
    components: np.ndarray

    def coded(self, U: Float[AnyArray, "N n d"]) -> Coded:
        """U projected to the components, which are stored as in `as_int8`."""
        code = as_int8((np.asarray(U, np.float32) - self.mean) @ self.components.T)
        return Coded(code.values @ self.components + self.mean, code.bytes)


def dense_code(train_U: Float[AnyArray, "N n d"], budget: int) -> DenseCode | None:
    """The principal components of U that fit a budget of bytes per image; None if not even one fits.

    Args:
        train_U: (N, n, d). budget: bytes per image; the components themselves are shared and not counted.
    """
    rows = np.asarray(train_U, np.float64).reshape(-1, train_U.shape[-1])
    count = min(budget // train_U.shape[1] - 2, rows.shape[1])  # n rows of count int8 and a float16 scale
    if count < 1:
        return None
    mean = rows.mean(0)
    _, vectors = np.linalg.eigh((rows - mean).T @ (rows - mean))
    return DenseCode(mean.astype(np.float32), vectors[:, ::-1][:, :count].T.astype(np.float32))
