"""Mean and scatter of rows that arrive in batches, and their principal components."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Array, Float

from sparse_vis.runtime.errors import UserError


@dataclass(frozen=True)
class Moments:
    """Mean and scatter matrix of the features so far, float64; the features themselves are not kept."""

    count: int  # rows seen
    mean: Float[np.ndarray, " f"]
    scatter: Float[np.ndarray, "f f"]  # Σ (x − mean)(x − mean)ᵀ

    @classmethod
    def empty(cls, size: int) -> Moments:
        """Moments of no rows, for features of this size."""
        return cls(0, np.zeros(size), np.zeros((size, size)))

    def update(self, features: Float[Array | np.ndarray, "... f"]) -> Moments:
        """The moments after one more batch of any size.

        Batches are centred before they are squared, because Σ x xᵀ − n mean meanᵀ loses digits for large
        means. Raises UserError for features that are not finite.
        """
        x = np.asarray(features, np.float64).reshape(-1, len(self.mean))
        if not np.isfinite(x).all():
            raise UserError("some features are not finite; check the images and the network's weights.")
        if len(x) == 0:
            return self
        mean = x.mean(axis=0)
        count, step = self.count + len(x), mean - self.mean
        between = np.outer(step, step) * (self.count * len(x) / count)
        x = x - mean
        return Moments(count, self.mean + step * (len(x) / count), self.scatter + x.T @ x + between)

    def components(self, count: int) -> Float[np.ndarray, "f k"]:
        """The first `count` principal components (at most f) as orthonormal columns, strongest first."""
        return np.linalg.eigh(self.scatter)[1][:, ::-1][:, :count]
