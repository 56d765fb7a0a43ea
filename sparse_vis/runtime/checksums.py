"""Checksums of arrays, independent of the devices that hold them, and of JSON objects.

A word w at position i adds m(w ^ m(i + key)) to a sum modulo 2^32, where m is a permutation of the 32-bit
words. A change within one word always changes the sum; any other damage, such as two swapped words, goes
unnoticed with probability 2^-32. A checksum consists of two sums with different keys.
"""

import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from sparse_vis.runtime import files
from sparse_vis.runtime.names import path_name

KEYS = (0x243F6A88, 0x85A308D3)  # the first digits of pi
CHUNK = 1 << 15  # words that fit into a processor's cache


def _mix(x):
    """A permutation of the 32-bit words in which every bit depends on every other (Wellons' lowbias32)."""
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _sums(words, positions) -> list:
    return [(_mix(words ^ _mix(positions + np.uint32(key)))).sum(dtype=np.uint32) for key in KEYS]


def _unsigned(dtype: np.dtype) -> type[np.unsignedinteger]:
    return {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}[dtype.itemsize]


def of_host(array: np.ndarray) -> list[int]:
    """The two sums of an array in host memory; compiles nothing."""
    # ravel: in C order, and one-dimensional for scalars too.
    words, sums = np.ravel(array).view(_unsigned(array.dtype)), [0, 0]
    for start in range(0, len(words), CHUNK):
        part = words[start : start + CHUNK].astype(np.uint32)
        positions = np.arange(start, start + len(part), dtype=np.uint64).astype(np.uint32)
        sums = [(a + int(b)) % 2**32 for a, b in zip(sums, _sums(part, positions), strict=True)]
    return sums


def of_devices(array: jax.Array) -> jax.Array:
    """The two sums of a traced array, equal to `of_host`; a sharded array is summed without gathering it."""
    array = array.astype(jnp.uint8) if array.dtype == jnp.bool_ else array
    words = jax.lax.bitcast_convert_type(array, _unsigned(array.dtype)).astype(jnp.uint32)
    positions, stride = jnp.zeros(words.shape, jnp.uint32), 1
    for axis in reversed(range(words.ndim)):
        along = jax.lax.broadcasted_iota(jnp.uint32, words.shape, axis)
        positions = positions + along * np.uint32(stride % 2**32)
        stride *= words.shape[axis]
    return jnp.stack(_sums(words, positions))


@functools.cache
def _program(result: jax.sharding.Sharding):
    return jax.jit(of_devices, out_shardings=result)


def checksum(leaf: jax.Array | np.ndarray) -> str:
    """Checksum of an array of any real, integer, boolean or key type, as 16 hexadecimal digits.

    NumPy computes it for arrays on a CPU; other devices sum their own shards. If the array is spread over
    several processes, all of them must call this.
    """
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    on_host = not isinstance(leaf, jax.Array) or (
        leaf.is_fully_addressable and all(device.platform == "cpu" for device in leaf.devices())
    )
    if on_host:
        with np.errstate(over="ignore"):
            sums = of_host(np.asarray(leaf))
    else:
        place = leaf.sharding
        if isinstance(place, NamedSharding):
            place = NamedSharding(place.mesh, PartitionSpec())
        sums = np.asarray(_program(place)(leaf))
    return "".join(f"{int(part):08x}" for part in sums)


def checksums(tree) -> dict[str, str]:
    """Path name -> checksum of every leaf of a pytree."""
    return {path_name(path): checksum(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def crc32(tree) -> int:
    """CRC-32 of the bytes of all leaves of a pytree, one after the other."""
    leaves = map(np.ascontiguousarray, jax.tree.leaves(tree))
    return functools.reduce(lambda crc, leaf: zlib.crc32(leaf, crc), leaves, 0)


def of_json(content: dict) -> str:
    """The first 16 digits of a JSON object's checksum (`files.checksum`)."""
    return files.checksum(content)[:16]
