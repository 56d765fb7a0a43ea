import os
import pathlib
import runpy
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import sparse_vis
from sparse_vis.interop.load import SHIPPED, check_shipped
from sparse_vis.runtime.errors import UserError
from tests.tiny_checkpoint import PATCH, SIZE, TOKENS, WIDTH

ROOT = pathlib.Path(__file__).parent.parent
FIELDS = ("cls", "sparse", "dense", "spatial", "lowrank")


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


FIRST = """
import numpy as np, sparse_vis, sys
model, params = sparse_vis.load("scenes-tiny")
print(sparse_vis.encode(model, params, np.zeros((1, 64, 64, 3), np.uint8)).sparse.shape)
needless = {"orbax", "optax", "ott", "tensorflow", "grain", "clu", "PIL", "jax.experimental.pallas.triton"}
print(*sorted(needless & set(sys.modules)))
"""


def test_a_notebook_imports_what_it_needs_and_keeps_its_programs(tmp_path):
    """There is one program, compiled by the first process only; where the cache is off, nothing is kept."""
    environment = {n: x for n, x in os.environ.items() if not n.startswith("JAX_")}
    environment |= {"JAX_PLATFORMS": "cpu", "JAX_LOG_COMPILES": "1"}
    kept = []
    for choice in ({}, {}, {"JAX_COMPILATION_CACHE_DIR": "", "XDG_CACHE_HOME": str(tmp_path / "off")}):
        done = subprocess.run(
            [sys.executable, "-c", FIRST], cwd=ROOT, capture_output=True, text=True, check=True,
            env=environment | {"XDG_CACHE_HOME": str(tmp_path / "on")} | choice,
        )  # fmt: skip
        assert done.stdout == "(1, 8, 64)\n\n" and done.stderr.count("\nCompiling jit(") == 1
        kept.append(
            {path.name: path.stat().st_mtime_ns for path in (tmp_path / "on").rglob("*encode*-cache")}
        )
    assert kept[0] and kept[0] == kept[1] == kept[2] and not (tmp_path / "off").exists()


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
@pytest.mark.parametrize("name", ["pictures-tiny", "scenes-tiny"])
def test_a_shipped_model_draws_first_weights_as_its_training_did(name):
    config = runpy.run_path(str(ROOT / "configs" / f"{name.replace('-', '_')}.py"))["get_config"]()
    model, _ = sparse_vis.load(name)
    assert model.encoder.sizes.init_std == model.decoder.sizes.init_std == config.model.init_std


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
        ([[0]], r"images are a list of list; give an array.*np\.stack"),
        (np.zeros((1, PATCH - 1, SIZE, 3), np.uint8), r"7x32 px are smaller than a patch \(8 px\)"),
        (["a.jpg"], r"images are a list of str; .*np\.stack\(\[np\.asarray\(PIL\.Image\.open\(path\)"),
        (pathlib.Path("a.jpg"), r"images are a PosixPath; .*PIL\.Image\.open\(path\).*\[None\]"),
        (
            Image.new("RGBA", (SIZE, SIZE)),
            r"images are a Image; .*np\.asarray\(image\.convert\(\"RGB\"\)\)\[None\]",
        ),
        ([Image.new("L", (SIZE, SIZE))], r"a list of Image; .*convert\(\"RGB\"\)\) for image in images\]\)"),
        (None, r"images are a NoneType; give an array"),
        (np.zeros((1, SIZE, SIZE, 3), "datetime64[s]"), r"dtype datetime64\[s\]; give uint8, or float"),
    ],
)
def test_encode_refuses_what_is_no_batch_of_images(loaded, wrong, sentence):
    with pytest.raises(UserError, match=sentence):
        sparse_vis.encode(*loaded, wrong)


RGB = np.random.default_rng(5).integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
GREY = RGB[..., :1]
ALPHA = np.concatenate([RGB, GREY], axis=-1)
UNIT = RGB / np.float32(255)
MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
# Wrong images; the expression of `images` that the sentence must give; what it must yield.
REMEDIES = {
    "one image": (RGB[0], "images[None]", RGB[:1]),
    "channels first": (RGB.transpose(0, 3, 1, 2), "images.transpose(0, 2, 3, 1)", RGB),
    "one, channels first": (RGB[0].transpose(2, 0, 1), "images.transpose(1, 2, 0)[None]", RGB[:1]),
    "alpha": (ALPHA, "images[..., :3]", RGB),
    "one with alpha": (ALPHA[0], "images[None, ..., :3]", RGB[:1]),
    "alpha, channels first": (ALPHA.transpose(0, 3, 1, 2), "images[:, :3].transpose(0, 2, 3, 1)", RGB),
    "one channel": (GREY, "np.repeat(images, 3, axis=-1)", GREY.repeat(3, -1)),
    "one channel first": (
        GREY.transpose(0, 3, 1, 2),
        "np.repeat(images, 3, axis=1).transpose(0, 2, 3, 1)",
        GREY.repeat(3, -1),
    ),
    "one of one channel": (GREY[0], "np.repeat(images, 3, axis=-1)[None]", GREY[:1].repeat(3, -1)),
    "grey": (GREY[..., 0], "np.stack([images] * 3, axis=-1)", GREY.repeat(3, -1)),
    "one grey": (GREY[0, ..., 0], "np.stack([images] * 3, axis=-1)[None]", GREY[:1].repeat(3, -1)),
    "batches": (RGB[None], "images.reshape(-1, *images.shape[-3:])", RGB),
    "0 to 255": (RGB.astype(np.float32), "images / 255", UNIT),
    "0 to 255 of half precision": (RGB.astype(np.float16), "images / 255", UNIT),
    "0 to 255 on the device": (jnp.asarray(RGB, jnp.float32), "images / 255", UNIT),
    "0 to 65535": (RGB * 257.0, "images / 65535", UNIT),
    "16 bits": (RGB.astype(np.uint16) * 257, "images / 65535", UNIT),
    "integers": (RGB.astype(np.int64), "images.astype(np.uint8)", RGB),
    "booleans": (RGB > 99, "images.astype(np.float32)", (RGB > 99) * 1.0),
    "-1 to 1": (UNIT * 2 - 1, "(images + 1) / 2", UNIT),
    "normalised": ((UNIT - MEAN) / STD, "images * std + mean", UNIT),
}


@pytest.mark.fast
@pytest.mark.parametrize("case", REMEDIES)
def test_the_remedy_for_wrong_images_works(loaded, case):
    wrong, remedy, right = REMEDIES[case]
    with pytest.raises(UserError) as caught:
        sparse_vis.encode(*loaded, wrong)
    assert remedy in str(caught.value) and "\n" not in str(caught.value)
    given = eval(remedy, {"np": np, "images": wrong, "mean": MEAN, "std": STD})
    out = sparse_vis.encode(*loaded, given)  # is accepted, and it is the image that was meant
    expected = right if right.dtype == np.uint8 else np.float32(right)
    np.testing.assert_allclose(out.cls, sparse_vis.encode(*loaded, expected).cls, atol=2e-4)


@pytest.mark.fast
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("array", [np.array, jnp.array])
def test_one_number_that_is_none_is_refused(loaded, value, array):
    wrong = UNIT.copy()
    wrong[1, 3, 5, 2] = value
    with pytest.raises(UserError, match="images hold NaN or infinite numbers; give uint8, or float in"):
        sparse_vis.encode(*loaded, array(wrong))


def test_the_rounding_of_a_resize_is_no_fault_and_inside_jit_nothing_is_checked(loaded):
    model, params = loaded
    sparse_vis.encode(model, params, np.clip(UNIT, 0.0, 1.0) * np.float32(1.0002))
    wrong = RGB.astype(np.float32)
    inside = jax.jit(lambda x: sparse_vis.encode(model, params, x).cls)(wrong)
    assert inside.shape == (2, 1, WIDTH) and np.isfinite(inside).all()
    assert jax.grad(lambda x: sparse_vis.encode(model, params, x).cls.sum())(UNIT).shape == UNIT.shape


@pytest.mark.fast
def test_arguments_in_another_order(loaded):
    model, params = loaded
    order = r"write model, params = load\(PATH\), then "
    with pytest.raises(UserError, match=rf"got a dict as model and a Stellar as params; {order}encode"):
        sparse_vis.encode(params, model, RGB)
    with pytest.raises(UserError, match=rf"got a tuple as model and a ndarray as params; {order}encode"):
        sparse_vis.encode(loaded, RGB, None)
    with pytest.raises(UserError, match=rf"got a dict as model and a Stellar as params; {order}reconstruct"):
        sparse_vis.reconstruct(params, model, sparse_vis.encode(model, params, RGB))


@pytest.mark.fast
def test_features_of_another_model(loaded):
    model, params = loaded
    features = sparse_vis.encode(model, params, RGB)
    narrow = features.replace(lowrank=features.lowrank[..., :5])
    with pytest.raises(
        UserError, match=rf"lowrank has shape \(2, 16, 5\), .* model expects \(B, 16, {WIDTH}\)"
    ):
        sparse_vis.reconstruct(model, params, narrow)
    with pytest.raises(
        UserError, match=r"lowrank has shape \(2, 16, \d+\), but for 16x16 px .* \(B, 4, \d+\)"
    ):
        sparse_vis.reconstruct(model, params, features.replace(size=(16, 16)))


@pytest.mark.fast
def test_a_path_that_does_not_exist_says_what_is_there(tmp_path):
    for name in ("quickstart", "digits"):
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=r"does not exist \(did you mean .*/quickstart\?\); give a workdir"):
        sparse_vis.load(tmp_path / "quikstart" / "checkpoints")
    with pytest.raises(UserError, match=r"does not exist \(\S* holds digits, quickstart\); give a workdir"):
        sparse_vis.load(tmp_path / "zzz")
    (tmp_path / "link").symlink_to("gone")
    with pytest.raises(UserError, match=r"link does not exist \(it is a link to gone\); give a workdir"):
        sparse_vis.load(tmp_path / "link")
    (tmp_path / "program").touch(mode=0o755)
    with pytest.raises(UserError, match=r"program/run does not exist; give a workdir"):
        sparse_vis.load(tmp_path / "program" / "run")
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(UserError, match=r"pipe\.safetensors is not a file; give"):
        sparse_vis.load(tmp_path / "pipe.safetensors")


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
    with pytest.raises(UserError, match=r"^None is not a checkpoint; give a workdir"):
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
def test_load_of_folders_without_a_checkpoint_says_what_to_give(tmp_path):
    images, runs = tmp_path / "photos", tmp_path / "runs"
    for name in ("0", "2020"):  # classes, which are no steps
        (images / name).mkdir(parents=True)
        (images / name / "x.JPG").touch()
    for part in ("params", "rest", "data", "config"):
        (runs / "a" / "checkpoints" / "7" / part / "d").mkdir(parents=True)
    step = runs / "a" / "checkpoints" / "7"
    for place, remedy in (
        (images, " but images, which are not a model; give the workdir of a run, or another model"),
        (images / "2020", " but images, which are not a model; give the workdir of a run, or another model"),
        (step / "params", f"; it is a part of one: give {step}"),
        (step / "rest" / "d", f"; it is a part of one: give {step}"),
        (runs, "; give one of the workdirs below it: a"),
        (runs / "a" / "checkpoints" / "b", ""),
    ):
        place.mkdir(exist_ok=True)
        with pytest.raises(UserError) as error:
            sparse_vis.load(place)
        assert str(error.value).startswith(f"{place} holds no complete checkpoint{remedy}")
    assert f"train one with main.py --workdir={place}" in str(error.value)
    with pytest.raises(UserError, match="7 is incomplete or damaged"):
        sparse_vis.load(runs / "a")


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
        UserError, match=r'damaged \(Error reading [^"]* local file "params/d/\w+": not found\); delete'
    ):
        sparse_vis.load(copy)
    shutil.rmtree(newest / "params")
    with pytest.raises(UserError, match=r"12 is incomplete or damaged \(it lacks params"):
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
