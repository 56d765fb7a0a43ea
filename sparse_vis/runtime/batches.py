"""Programs compile once for each shape: call them with batches of one size, split over the devices."""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sparse_vis.runtime.progress import Progress


def run_in_batches(call: Callable, size: int, *arrays, progress: Progress | None = None):
    """What `call` gives for all rows: NumPy arrays in the structure that it returns, one row per row given.

    Args:
        call: `size` rows of each array → any structure of arrays of `size` rows.
        size: rows per call; a smaller last batch is padded with copies of its last row.
        arrays: of equally many rows, at least one. progress: told of every batch.
    """
    found = []
    for start in range(0, len(arrays[0]), size):
        rows = [np.asarray(x[start : start + size]) for x in arrays]
        count = len(rows[0])
        filled = [np.pad(x, [(0, size - count)] + [(0, 0)] * (x.ndim - 1), mode="edge") for x in rows]
        # Reading the result at once keeps one batch in flight; many in flight can hang JAX on few cores.
        out = jax.device_get(call(*filled))
        found.append(jax.tree.map(lambda x, count=count: np.asarray(x)[:count], out))
        if progress is not None:
            progress.add(count)
    return jax.tree.map(lambda *parts: np.concatenate(parts) if len(parts) > 1 else parts[0], *found)


class Devices:
    """All devices of this process: each holds all parameters, and computes its part of every batch."""

    def __init__(self):
        self.mesh = Mesh(np.array(jax.local_devices()), ("batch",))

    def multiple(self, size: int) -> int:
        """The batch size, rounded up to a multiple of the number of devices."""
        return -(-size // self.mesh.size) * self.mesh.size

    def everywhere(self, tree):
        """All arrays of a tree, whole on each device."""
        return jax.device_put(tree, NamedSharding(self.mesh, PartitionSpec()))

    def split(self, tree, axis: int = 0):
        """All arrays of a tree, with an equal part of this axis on each device; whole on each if that is
        impossible."""
        lengths = {x.shape[axis] % self.mesh.size for x in jax.tree.leaves(tree)}
        spec = PartitionSpec(*[None] * axis, None if any(lengths) else "batch")
        return jax.device_put(tree, NamedSharding(self.mesh, spec))
