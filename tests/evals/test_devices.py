"""Evaluations use all devices of a process, and measure on several what they measure on one."""

import os
import subprocess
import sys

from tests.main_process import ROOT

FOUR = """
import jax, numpy as np
from sparse_vis import api
from sparse_vis.evals import encoders
from sparse_vis.evals.classes import knn
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
found = encode(encoder, images, names, batch_size=3)
# Batches of 3 are rounded up to 4: one image on every device.
assert [parts(batch) for batch in seen] == [{(device, 1) for device in jax.devices()}] * 2
expected = plain(model, params, images)  # on one device
np.testing.assert_allclose(found["sparse"], expected.sparse, atol=1e-5)
np.testing.assert_allclose(found["dense"], expected.dense, atol=1e-5)
np.testing.assert_allclose(found["reconstruction"], api.reconstruct(model, params, expected), atol=1e-5)

merge, split = knn._merge, []
knn._merge = lambda best, queries, rows, *more: split.append((parts(queries), parts(rows))) or merge(
    best, queries, rows, *more)
knn.QUERY_BLOCK, knn.GALLERY_BLOCK = 8, 50
x, y, queries = draw.normal(size=(120, 5)), draw.integers(0, 3, 120), draw.normal(size=(18, 5))
predicted = knn.knn_predict(Split(x, y), queries, classes=3, ks=(7,))[7]
everywhere = {(device, 50) for device in jax.devices()}
assert split[0] == ({(device, 2) for device in jax.devices()}, everywhere)
assert split[2] == ({(device, 2) for device in jax.devices()}, everywhere), "the last two queries"
"""


def test_four_devices_share_the_images_and_the_queries():
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PJRT_NPROC": "32"}
    done = subprocess.run(
        [sys.executable, "-c", FOUR], env=environment, capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
