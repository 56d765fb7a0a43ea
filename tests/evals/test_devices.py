"""Evaluations use all devices of a process, and measure on several what they measure on one."""

import os
import subprocess
import sys

from tests.main_process import ROOT

FOUR = """
import jax, numpy as np
from sparse_vis import api
from sparse_vis.evals import encoders
from sparse_vis.evals.classes import knn, linear
from sparse_vis.evals.features import Split, encode

def parts(array):
    return {(shard.device, shard.data.shape[0]) for shard in array.addressable_shards}

model, params = api.load("scenes-tiny")
draw = np.random.default_rng(0)
images = draw.integers(0, 256, (7, 48, 48, 3), np.uint8)
encoder, seen = encoders.stellar_encoder("trained", model, params, {}), []
plain = api.encode
api.encode = lambda model, params, images: seen.append(images) or plain(model, params, images)
names = ("sparse", "dense", "reconstruction", "prototype")
found = encode(encoder, images, names, batch=3)
# Batches of 3 are rounded up to 4: one image on every device.
assert [parts(batch) for batch in seen] == [{(device, 1) for device in jax.devices()}] * 2
expected = plain(model, params, images)  # on one device
np.testing.assert_allclose(found["sparse"], expected.sparse, atol=1e-5)
np.testing.assert_allclose(found["dense"], expected.dense, atol=1e-5)
np.testing.assert_allclose(found["reconstruction"], api.reconstruct(model, params, expected), atol=1e-5)
each = []
api.of_images(lambda model, params, x: each.append(parts(x)) or x[:, 0], model, params, list(images), 3)
assert each == [{(device, 1) for device in jax.devices()}] * 3, "what encodes lists of images too"

merge, split = knn._merge, []
knn._merge = lambda best, queries, rows, *more: split.append((parts(queries), parts(rows))) or merge(
    best, queries, rows, *more)
knn.QUERY_BLOCK, knn.GALLERY_BLOCK = 8, 50
x, y, queries = draw.normal(size=(120, 5)), draw.integers(0, 3, 120), draw.normal(size=(18, 5))
predicted = knn.knn_predict(Split(x, y), queries, classes=3, ks=(7,))[7]
everywhere = {(device, 50) for device in jax.devices()}
assert split[0] == ({(device, 2) for device in jax.devices()}, everywhere)
assert split[1] == ({(device, 2) for device in jax.devices()}, everywhere)
assert split[2] == ({(device, 2) for device in jax.devices()}, everywhere), "two queries are whole on each"
unit = lambda rows: rows / np.linalg.norm(rows, axis=1, keepdims=True)
cosines = unit(queries) @ unit(x).T
nearest = np.argsort(-cosines)[:, :7]
votes = np.exp(np.take_along_axis(cosines, nearest, 1) / 0.07)[:, :, None] * np.eye(3)[y[nearest]]
np.testing.assert_array_equal(predicted, votes.sum(1).argmax(1))

advance, shares = linear._advance, []
linear._advance = lambda state, rows, *more: shares.append(rows[0][0].sharding.shard_shape(
    rows[0][0].shape)) or advance(state, rows, *more)
protocol = linear.SweepProtocol(steps=60, batch_size=40)
four, _ = linear.fit_all({"x": x}, y, 3, protocol)
assert shares == [(50, 10, 5), (10, 10, 5)]
class One(knn.Devices):
    def __init__(self):
        self.mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("batch",))

linear.Devices = One
one, _ = linear.fit_all({"x": x}, y, 3, protocol)
np.testing.assert_allclose(four["x"].weight, one["x"].weight, atol=1e-4)
assert np.abs(one["x"].weight).max() > 0.01
"""


def test_four_devices_share_the_images_and_the_queries():
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PJRT_NPROC": "32"}
    done = subprocess.run(
        [sys.executable, "-c", FOUR], env=environment, capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
