"""Checksums: what they notice, and that devices and host agree."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from sparse_vis.runtime.checksums import KEYS, checksum, checksums, of_devices, of_json

ARRAYS = {
    "float32": np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32),
    "float64": np.arange(3.0),
    "bfloat16": np.linspace(-1, 1, 7).astype(ml_dtypes.bfloat16),
    "int32": np.array(-3, np.int32),
    "uint8": np.arange(4, dtype=np.uint8),
}


@pytest.mark.fast
@pytest.mark.parametrize("name", ARRAYS)
def test_every_flipped_bit_is_noticed(name):
    array = ARRAYS[name]
    seen = {checksum(array)}
    for bit in range(8 * array.nbytes):
        data = bytearray(array.tobytes())
        data[bit // 8] ^= 1 << bit % 8
        seen.add(checksum(np.frombuffer(data, array.dtype).reshape(array.shape)))
    assert len(seen) == 1 + 8 * array.nbytes


@pytest.mark.fast
def test_values_that_trade_places_are_noticed():
    array = np.array([1.0, -1.0, 2.0, 0.0, -0.0], np.float32)  # they differ in few bits
    swaps = [(i, j) for i in range(5) for j in range(i)]
    seen = {checksum(array)}
    for i, j in swaps:
        other = array.copy()
        other[[i, j]] = other[[j, i]]
        seen.add(checksum(other))
    assert len(seen) == 1 + len(swaps)
    assert checksum(np.zeros(3, np.float32)) != checksum(np.zeros(4, np.float32))


def in_words_of_python(array):
    """The sums of the module's docstring with Python's integers, word by word."""

    def mix(x):
        x = (x ^ x >> 16) * 0x7FEB352D % 2**32
        x = (x ^ x >> 15) * 0x846CA68B % 2**32
        return x ^ x >> 16

    size = min(array.dtype.itemsize, 4)
    data = array.tobytes()
    words = [int.from_bytes(data[i : i + size], "little") for i in range(0, len(data), size)]
    sums = [sum(mix(w ^ mix((i + key) % 2**32)) for i, w in enumerate(words)) % 2**32 for key in KEYS]
    return "".join(f"{part:08x}" for part in sums)


def test_host_devices_and_plain_integers_agree():
    rng = np.random.default_rng(1)
    arrays = [a for name, a in ARRAYS.items() if name != "float64"]  # of which JAX has none
    arrays += [rng.normal(size=(2, 3, 4)).astype(np.float32).swapaxes(0, 2), np.zeros((0, 3), np.float32)]
    arrays += [np.array([True, False]), rng.integers(-9, 9, (70_000,), np.int8)]  # more than a chunk
    for array in arrays:
        expected = in_words_of_python(array)
        assert checksum(array) == checksum(jnp.asarray(array)) == expected
        assert "".join(f"{int(part):08x}" for part in jax.jit(of_devices)(array)) == expected


@pytest.mark.fast
def test_names_keys_and_json():
    found = checksums({"a": {"b": np.ones(2)}, "key": jax.random.key(3)})
    assert found == {"a/b": checksum(np.ones(2)), "key": checksum(np.array([0, 3], np.uint32))}
    assert of_json({"a": 1, "b": [2.5]}) == of_json({"b": [2.5], "a": 1})
    assert len({of_json(x) for x in ({"a": 1}, {"a": 2}, {"a": 1.0}, {"a": [1]}, {"b": 1})}) == 5
