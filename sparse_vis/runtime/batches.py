"""Call programs, which compile once per shape, with batches of one size that are split over the devices.

With several processes, each computes its share of the rows on its own devices, and all get all rows.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from sparse_vis.runtime.progress import Progress

GATHERED = 2**28  # bytes that processes exchange at a time, which every device holds
T = TypeVar("T")


def run_in_batches(call: Callable, size: int, *arrays, progress: Progress | None = None):
    """`call` on all rows, one batch at a time: NumPy arrays in the structure that `call` returns.

    Each batch is split over all devices of this process. Parameters that `call` uses must be on all of them
    (`Devices.everywhere`).

    Args:
        call: `size` rows of each array → any structure of arrays of `size` rows.
        size: rows per call, rounded up to a multiple of the devices; a smaller last batch is padded with
            copies of its last row.
        arrays: of equally many rows, at least one. progress: counts the rows that are done.
    """
    devices, found = Devices(), []
    size = -(-size // devices.mesh.size) * devices.mesh.size
    for start in range(0, len(arrays[0]), size):
        rows = [np.asarray(x[start : start + size]) for x in arrays]
        count = len(rows[0])
        filled = [np.pad(x, [(0, size - count)] + [(0, 0)] * (x.ndim - 1), mode="edge") for x in rows]
        # Reading the result at once keeps one batch in flight; many in flight can hang JAX on few cores.
        out = jax.device_get(call(*devices.split(filled)))
        found.append(jax.tree.map(lambda x, count=count: np.asarray(x)[:count], out))
        if progress is not None:
            progress.add(count)
    return jax.tree.map(lambda *parts: np.concatenate(parts) if len(parts) > 1 else parts[0], *found)


class Devices:
    """All devices of this process: parameters are copied to each, and batches are split over them."""

    def __init__(self):
        self.mesh = Mesh(np.array(jax.local_devices()), ("batch",))

    def everywhere(self, tree):
        """A copy of all arrays of a tree on each device."""
        return self._put(tree, PartitionSpec())

    def split(self, tree, axis: int = 0):
        """All arrays of a tree, split evenly along this axis; copied to all devices if that fails."""
        lengths = {x.shape[axis] % self.mesh.size for x in jax.tree.leaves(tree)}
        spec = PartitionSpec(*[None] * axis, None if any(lengths) else "batch")
        return self._put(tree, spec)

    def _put(self, tree, spec: PartitionSpec):
        # Without a sharding if there is one device: programs compiled for such arrays are used again.
        return jax.device_put(tree, NamedSharding(self.mesh, spec) if self.mesh.size > 1 else None)


def in_shares(
    count: int,
    size: int,
    batches: Callable[[np.ndarray], Iterable[T]],
    compute: Callable[[T], dict[str, np.ndarray]],
) -> Iterator[dict[str, np.ndarray]]:
    """Yield the results of `compute` for rows 0 … count-1, in order; each process computes its share of them.

    Every process yields the same arrays, of at most `size` rows per process. All processes must call
    this at the same point, for the same rows. A process that fails must exit, so that the others end too.

    Args:
        batches: rows → batches of `size` of them, in order. compute: batch → arrays of as many rows.
    """
    done = 0
    for batch in batches(_share(count, size)):
        found = gathered(compute(batch))
        found = {name: rows[: count - done] for name, rows in found.items()}
        done += len(next(iter(found.values())))
        yield found


def _share(count: int, size: int) -> np.ndarray:
    """Rows of this process: an equal part of each size * processes rows; short parts repeat the last."""
    process, processes, parts = jax.process_index(), jax.process_count(), []
    for start in range(0, count, size * processes):
        rows = -(-min(size * processes, count - start) // processes)
        parts.append(start + process * rows + np.arange(rows))
    return np.minimum(np.concatenate(parts), count - 1)


def gathered(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of all processes, bit for bit, joined along the first axis, which is equally long in all."""
    if jax.process_count() == 1:
        return arrays
    # As bytes, because JAX would round 64-bit numbers to 32; and in one array, to wait once.
    arrays = {name: np.ascontiguousarray(x) for name, x in arrays.items()}
    flat = np.concatenate([x.reshape(len(x), -1).view(np.uint8) for x in arrays.values()], axis=1)
    every = np.empty((jax.process_count(), *flat.shape), np.uint8)
    block = max(1, GATHERED // (flat.shape[1] * jax.process_count()))
    for start in range(0, len(flat), block):
        rows = slice(start, start + block)
        every[:, rows] = multihost_utils.process_allgather(flat[rows])
    every, found, start = every.reshape(-1, flat.shape[1]), {}, 0
    for name, x in arrays.items():
        end = start + math.prod(x.shape[1:]) * x.dtype.itemsize
        rows = np.ascontiguousarray(every[:, start:end]).view(x.dtype)
        found[name], start = rows.reshape(-1, *x.shape[1:]), end
    return found


def of_first(array: np.ndarray) -> np.ndarray:
    """The array of process 0, for all processes to agree on; each must give an array of the same shape."""
    return gathered({"": array})[""][: len(array)]
