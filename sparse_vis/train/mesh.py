"""Devices as a (data, fsdp) mesh, and the sharding of each array.

The batch is sharded over both axes, parameters and optimizer state over fsdp, by rules on their paths.
The mathematics contains no collectives: under jit, a sum over the batch is already global.
"""

import math
import re

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.names import path_name

BATCH = P(("data", "fsdp"))

# The blocks' kernels, 97 % of H/14's parameters, are sharded along their first matrix axis; so are scale and
# bias of the LayerNorm before a kernel, as their gradients follow from the kernel's. All else is replicated:
# sharded prototypes would be gathered again for each of their many uses, and their gradient would need the
# rows of the whole batch.
SHARDED = re.compile(r"blocks/(.*kernel|norm_.*)$")


def make_mesh(shape: tuple[int, int], devices: list | None = None) -> Mesh:
    """Mesh of (data, fsdp) devices; -1 in `shape` takes all that remain.

    Raises UserError unless `shape` covers all devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = list(shape)
    given = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and given:
        sizes[sizes.index(-1)] = len(devices) // given
    if min(sizes) < 1 or math.prod(sizes) != len(devices):
        raise UserError(
            f"config.efficiency.mesh={tuple(shape)} does not cover the {len(devices)} devices; "
            "use (-1, 1), or two numbers whose product is the number of devices."
        )
    auto = (jax.sharding.AxisType.Auto,) * 2
    return jax.make_mesh(tuple(sizes), ("data", "fsdp"), axis_types=auto, devices=devices)


def state_sharding(mesh: Mesh, state):
    """NamedSharding of every leaf of a train state or parameter tree; leaves that the mesh cannot divide are
    replicated."""

    def one(path, leaf):
        spec = P(None, "fsdp") if SHARDED.search(path_name(path)) else P()
        fits = len(spec) <= len(leaf.shape) and all(
            axis is None or size % mesh.shape[axis] == 0 for axis, size in zip(spec, leaf.shape, strict=False)
        )
        return NamedSharding(mesh, spec if fits else P())

    return jax.tree_util.tree_map_with_path(one, state)


def global_batch(mesh: Mesh, local):
    """One global array per leaf from the rows of each process."""
    sharding = NamedSharding(mesh, BATCH)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), local)
