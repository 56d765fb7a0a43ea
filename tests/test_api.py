import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sparse_vis
from sparse_vis.errors import UserError
from sparse_vis.interop.load import SHIPPED, check_shipped
from tests.tiny_checkpoint import PATCH, SIZE, TOKENS, WIDTH, write_checkpoints

ROOT = pathlib.Path(__file__).parent.parent
FIELDS = ("cls", "sparse", "dense", "spatial", "lowrank")


@pytest.fixture(scope="session")
def workdir(tmp_path_factory):
    # 12 is newer than 3 as a number, older as a word.
    path = tmp_path_factory.mktemp("run")
    write_checkpoints(path, {3: 1, 12: 2})
    return path


@pytest.fixture(scope="session")
def loaded(workdir):
    return sparse_vis.load(workdir)


@pytest.fixture
def copy(workdir, tmp_path):
    return pathlib.Path(shutil.copytree(workdir, tmp_path / "run"))


def images(height, width, batch=2):
    return np.random.default_rng(height).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)


def first(params):
    return np.asarray(jax.tree.leaves(params)[0])


@pytest.mark.fast
def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, sparse_vis; print(sorted({'jax', 'numpy', 'tensorflow'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.fast
def test_the_shipped_model_is_compared_with_its_checksums(tmp_path):
    folder = pathlib.Path(shutil.copytree(SHIPPED / "scenes-tiny", tmp_path / "scenes-tiny"))
    check_shipped(folder)
    for name in ("config.json", "scenes_tiny.safetensors"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:])
        with pytest.raises(UserError, match=rf"{name} is damaged.*install the package again"):
            check_shipped(folder)
        (folder / name).write_bytes(whole)


@pytest.mark.fast
def test_load_takes_the_newest_step_or_the_one_given(workdir, loaded):
    by_step = {step: sparse_vis.load(workdir / "checkpoints" / step)[1] for step in ("3", "12")}
    np.testing.assert_array_equal(first(loaded[1]), first(by_step["12"]))
    assert np.abs(first(by_step["3"]) - first(by_step["12"])).max() > 0.1
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(loaded[1]))


@pytest.mark.fast
def test_load_reads_the_parameters_only(copy, loaded):
    for step in ("3", "12"):
        shutil.rmtree(copy / "checkpoints" / step / "rest")
        (copy / "checkpoints" / step / "rest").mkdir()
    _, params = sparse_vis.load(str(copy))
    np.testing.assert_array_equal(first(params), first(loaded[1]))


@pytest.mark.fast
@pytest.mark.parametrize("size", [(40, 56), (45, 61), (PATCH, PATCH)])
def test_encode_and_reconstruct_any_size(loaded, size):
    model, params = loaded
    out = sparse_vis.encode(model, params, images(*size))
    rows, columns = size[0] // PATCH, size[1] // PATCH
    patches = rows * columns
    shapes = [(1, WIDTH), (TOKENS, WIDTH), (patches, WIDTH), (patches, TOKENS), (patches, WIDTH)]
    assert [getattr(out, name).shape for name in FIELDS] == [(2, *shape) for shape in shapes]
    np.testing.assert_allclose(out.spatial.sum(-1), 1, atol=1e-6)
    product = np.einsum("bnr,brd->bnd", out.spatial, out.sparse)
    np.testing.assert_allclose(out.lowrank, product, rtol=1e-5, atol=1e-5)
    # Far beyond the range on both sides, so that clipping shows.
    decoder = params["decoder"] | {"pixel_kernel": 20 * params["decoder"]["pixel_kernel"]}
    pixels = np.asarray(sparse_vis.reconstruct(model, params | {"decoder": decoder}, out))
    assert pixels.shape == (2, rows * PATCH, columns * PATCH, 3) and pixels.dtype == np.float32
    assert pixels.min() == 0 and pixels.max() == 1 and len(np.unique(pixels)) > 10


@pytest.mark.fast
def test_a_remainder_beyond_whole_patches_is_not_seen(loaded):
    odd = images(45, 61)
    whole, whole_columns = 45 // PATCH * PATCH, 61 // PATCH * PATCH
    a = sparse_vis.encode(*loaded, odd)
    b = sparse_vis.encode(*loaded, odd[:, :whole, :whole_columns])
    np.testing.assert_allclose(a.sparse, b.sparse, rtol=1e-5, atol=1e-5)


@pytest.mark.fast
def test_uint8_and_float_agree_also_inside_jit(loaded):
    model, params = loaded
    pixels = images(SIZE, SIZE)
    out = sparse_vis.encode(model, params, pixels)
    for other in (pixels / 255, jnp.asarray(pixels / 255, jnp.float32), jnp.asarray(pixels)):
        again = sparse_vis.encode(model, params, other)
        for name in FIELDS:
            np.testing.assert_allclose(getattr(again, name), getattr(out, name), rtol=1e-5, atol=1e-5)

    @jax.jit
    def both(params, x):
        features = sparse_vis.encode(model, params, x)
        return features, sparse_vis.reconstruct(model, params, features)

    features, reconstructed = both(params, pixels)
    np.testing.assert_allclose(features.sparse, out.sparse, rtol=1e-5, atol=1e-5)
    outside = sparse_vis.reconstruct(model, params, out)
    np.testing.assert_allclose(reconstructed, outside, rtol=1e-4, atol=1e-5)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (np.zeros((SIZE, SIZE, 3), np.uint8), r"shape \(32, 32, 3\).*images\[None\]"),
        (np.zeros((2, 3, SIZE, SIZE), np.uint8), r"shape \(2, 3, 32, 32\).*\.transpose\(0, 2, 3, 1\)"),
        (np.zeros((0, SIZE, SIZE, 3), np.uint8), r"shape \(0, 32, 32, 3\); give at least one"),
        (np.zeros((2, SIZE, SIZE, 4), np.uint8), r"shape \(2, 32, 32, 4\)"),
        ([[0]], r"images are a list; give an array.*np\.stack"),
        (np.zeros((1, PATCH - 1, SIZE, 3), np.uint8), r"7x32 px are smaller than a patch \(8 px\)"),
        (np.zeros((1, SIZE, SIZE, 3), np.int32), "dtype int32"),
        (np.zeros((1, SIZE, SIZE, 3), bool), "dtype bool"),
    ],
)
def test_encode_refuses_what_is_no_batch_of_images(loaded, wrong, sentence):
    with pytest.raises(UserError, match=sentence):
        sparse_vis.encode(*loaded, wrong)


@pytest.mark.fast
def test_reconstruct_refuses_what_are_no_features(loaded):
    with pytest.raises(UserError, match=r"features are a ndarray; give what encode\(model, params, images\)"):
        sparse_vis.reconstruct(*loaded, images(SIZE, SIZE))


@pytest.mark.fast
def test_load_of_what_is_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match=r"gone does not exist; give a workdir, .*hf:// address"):
        sparse_vis.load(tmp_path / "gone")
    for near in ("scenes-tinny", "scenes_tiny"):
        with pytest.raises(UserError, match=rf"{near} does not exist \(did you mean scenes-tiny\?\); give a"):
            sparse_vis.load(near)
    with pytest.raises(UserError, match=r"^scenes-tiny has no model 'foo'; leave the name out\.$"):
        sparse_vis.load("scenes-tiny", "foo")
    with pytest.raises(UserError, match=r"^None is no checkpoint; give a workdir"):
        sparse_vis.load(None)
    for argument in ("dtype", "tokenizer_dtype"):
        with pytest.raises(
            UserError, match=f"^{argument}='float8' .*; give one of float32, bfloat16, float16"
        ):
            sparse_vis.load("scenes-tiny", **{argument: "float8"})
    (tmp_path / "checkpoints" / "5.orbax-checkpoint-tmp").mkdir(parents=True)
    with pytest.raises(UserError, match="holds no complete checkpoint"):
        sparse_vis.load(tmp_path)


@pytest.mark.fast
def test_load_of_incomplete_and_damaged_checkpoints(copy):
    newest, older = copy / "checkpoints" / "12", copy / "checkpoints" / "3"
    for file in (newest / "params").rglob("d/*"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(UserError, match=r"12 is incomplete or damaged.*delete that folder") as error:
        sparse_vis.load(copy)
    assert "\n" not in str(error.value)
    for file in (newest / "params" / "d").iterdir():
        file.unlink()
    with pytest.raises(
        UserError, match=r'damaged \(Error reading [^"]* local file "[^"]*/params/d/\w+"\); delete'
    ):
        sparse_vis.load(copy)
    shutil.rmtree(newest / "params")
    with pytest.raises(UserError, match="12 is incomplete: it lacks params"):
        sparse_vis.load(copy)
    shutil.rmtree(newest)
    sparse_vis.load(copy)  # the remedy of the sentences above
    config = older / "config" / "metadata"
    for text in ("{", '{"model": {"wdith": 3}}'):
        config.write_text(text)
        with pytest.raises(UserError, match="3 is incomplete or damaged"):
            sparse_vis.load(copy)
    (older / "data" / "metadata").write_text(
        '{"next_index": 24}'
    )  # as other versions write, without checksums
    with pytest.raises(UserError, match=r"model\.wdith"):
        sparse_vis.load(copy)


# Loads what one device wrote, and writes parameters split over four.
FOUR_DEVICES = """
import sys, pathlib
import jax, numpy as np
import sparse_vis
from tests.tiny_checkpoint import write_checkpoints
workdir, split, images, result = sys.argv[1:]
assert jax.device_count() == 4
out = sparse_vis.encode(*sparse_vis.load(workdir), np.load(images))
np.save(result, out.sparse)
write_checkpoints(pathlib.Path(split), {7: 2}, mesh=(1, 4))
"""


def test_load_works_on_other_devices_than_those_that_trained(workdir, loaded, tmp_path):
    pixels = images(SIZE, SIZE)
    np.save(tmp_path / "images.npy", pixels)
    paths = [workdir, tmp_path / "split", tmp_path / "images.npy", tmp_path / "result.npy"]
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", FOUR_DEVICES, *map(str, paths)],
        env={**os.environ, **flags}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = sparse_vis.encode(*loaded, pixels).sparse
    np.testing.assert_allclose(np.load(tmp_path / "result.npy"), expected, rtol=1e-5, atol=1e-5)
    # Step 12 of `workdir` has the same seed.
    _, params = sparse_vis.load(tmp_path / "split")
    jax.tree.map(np.testing.assert_array_equal, params, loaded[1])
    assert all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves(params))
