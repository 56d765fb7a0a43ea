"""Values that are no weights, flipped bits in our own exports, models saved in several files."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from sparse_vis.evals.pixels import networks
from sparse_vis.interop.backbones import find_file, read_backbone
from sparse_vis.interop.formats import write_safetensors
from sparse_vis.interop.load import read_model
from sparse_vis.interop.maskgit import load_tokenizer
from sparse_vis.interop.tensors import check_tensors, read_tensors
from sparse_vis.runtime.errors import UserError
from tests.interop.mae_config import config_of

pytestmark = pytest.mark.fast
GOLDEN = Path(__file__).parents[1] / "golden"
MAE = GOLDEN / "mae_p16"
PARTS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def released(path, folder):
    entry = json.loads((GOLDEN / "config.json").read_text())["models"]["pixel_p16"]
    (folder / "config.json").write_text(json.dumps({"models": {"x": {**entry, "weights": path.name}}}))
    return read_model(path)


# What reads a file; a file of its kind; one of its tensors.
READERS = {
    "load": (released, GOLDEN / "pixel_p16.safetensors", "encoder.layernorm.weight"),
    "config.init": (
        lambda path, _: read_backbone(path, config_of(MAE)),
        MAE / "model.safetensors",
        "vit.layernorm.bias",
    ),
    "tokenizer": (
        lambda path, _: load_tokenizer(path),
        GOLDEN / "vq_p16.vqgan.safetensors",
        "decoder.conv_in.bias",
    ),
}
INTEGERS = [np.int8, np.int32, np.uint8, np.bool_]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300, *INTEGERS])
def test_what_is_no_weight_is_refused_with_the_tensors_name(reader, value, tmp_path):
    read, source, name = READERS[reader]
    tensors = load_file(source)
    if isinstance(value, float):
        tensors[name] = tensors[name].astype(np.float64)
        tensors[name].flat[1] = value
        sentence = (
            rf"contains NaN or infinite values in 1 tensors \({name}: 1 of {tensors[name].size}\); .*again"
        )
    else:
        tensors[name] = tensors[name].astype(value)
        sentence = rf"1 tensors that are not floating-point .*\({name} is {np.dtype(value)}\); .*quantization"
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=sentence):
        read(tmp_path / "x.safetensors", tmp_path)


def test_the_metric_networks_files_are_checked_too(tmp_path, monkeypatch):
    # The heads are read after AlexNet, whose 9.9 MB are not needed here.
    heads = {
        f"lin{i}.model.1.weight": np.ones((1, n, 1, 1), np.float32)
        for i, n in enumerate((64, 192, 384, 256, 256))
    }
    heads["lin3.model.1.weight"][0, 7] = np.nan
    save_file(heads, tmp_path / "heads.safetensors")
    shapes = {name: array.shape for name, array in heads.items()}
    with pytest.raises(
        UserError, match=r"heads\.safetensors contains NaN .*lin3\.model\.1\.weight: 1 of 256.*LPIPS v0\.1"
    ):
        networks._read(tmp_path / "heads.safetensors", shapes, (), networks.HEADS)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, ml_dtypes.bfloat16])
def test_every_float_type_becomes_float32(dtype):
    values = np.array([0.5, -3.0, 65504.0 if dtype == np.float16 else 2.0**100], dtype)
    (found,) = check_tensors({"a": values}, {"a": (3,)}, (), "x").values()
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, values.astype(np.float32))


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_an_element_type_that_numpy_lacks_is_named_with_its_tensor(tmp_path, dtype):
    header = json.dumps({"a.weight": {"dtype": dtype, "shape": [2], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\x38\x38")
    with pytest.raises(UserError, match=rf"a\.weight is a tensor of {dtype} that NumPy .*as float32\.$"):
        read_tensors(tmp_path / "x.safetensors")


def test_what_nothing_reads_may_hold_anything():
    found = {"a": np.ones(2, np.float32), "pooler.weight": np.array([np.nan, 1])}
    assert check_tensors(found, {"a": (2,)}, (r"pooler\..*",), "x").keys() == {"a"}


@pytest.fixture
def written(tmp_path):
    """A file of ours: path and where its data start."""
    tensors = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.float16([1.5, -2.0]),
        "c": np.array(7, np.float32),
    }
    write_safetensors(tensors, tmp_path / "x.safetensors")
    whole = (tmp_path / "x.safetensors").read_bytes()
    return tmp_path / "x.safetensors", 8 + struct.unpack("<Q", whole[:8])[0]


def test_the_same_tensors_give_the_same_bytes(written):
    path, _ = written
    tensors, files = read_tensors(path), set()
    for i in range(8):
        write_safetensors(tensors, path.with_name(f"{i}.safetensors"))
        files.add(path.with_name(f"{i}.safetensors").read_bytes())
    assert files == {path.read_bytes()}


def test_every_flipped_bit_of_an_export_is_seen(written):
    path, start = written
    whole, before = path.read_bytes(), read_tensors(path)
    assert before.keys() == {"a", "b", "c"} and before["c"] == 7
    for i in range(start, len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1 << i % 8]) + whole[i + 1 :])
        with pytest.raises(
            UserError, match=r"x\.safetensors is damaged: the checksum of [abc] does not match"
        ):
            read_tensors(path)
    for i in range(start):  # a bit of the header: the same tensors, or a sentence
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 1 << i % 8]) + whole[i + 1 :])
        try:
            found = read_tensors(path)
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert all(np.array_equal(found[name], before[name]) for name in before.keys() | found.keys())


def test_an_export_that_lost_a_tensor(written):
    path, _ = written
    with safe_open(path, "np") as file:  # repacked with its metadata
        save_file({name: file.get_tensor(name) for name in "ab"}, path, file.metadata())
    with pytest.raises(UserError, match=r"is damaged: the checksum of c does not match \(1 tensors in all\)"):
        read_tensors(path)


@pytest.fixture
def sharded(tmp_path):
    """The MAE in two files with their index."""
    tensors = load_file(MAE / "model.safetensors")
    names = sorted(tensors)
    halves = names[::2], names[1::2]
    for file, half in zip(PARTS, halves, strict=True):
        save_file({name: tensors[name] for name in half}, tmp_path / file)
    index = {
        "metadata": {},
        "weight_map": {name: file for file, half in zip(PARTS, halves, strict=True) for name in half},
    }
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    return tmp_path


def test_a_model_in_several_files(sharded):
    config, path = config_of(MAE), find_file(str(sharded))
    assert path == sharded / "model.safetensors.index.json"
    found, expected = read_backbone(path, config), read_backbone(MAE / "model.safetensors", config)
    np.testing.assert_array_equal(found["trunk"]["norm"]["bias"], expected["trunk"]["norm"]["bias"])
    np.testing.assert_array_equal(
        found["trunk"]["blocks"]["qkv"]["kernel"], expected["trunk"]["blocks"]["qkv"]["kernel"]
    )
    with pytest.raises(UserError, match=r"of several parts: give model\.safetensors\.index\.json\."):
        read_backbone(sharded / PARTS[0], config)
    (sharded / PARTS[1]).unlink()
    with pytest.raises(UserError, match=rf"{PARTS[1]} is not a file"):
        read_backbone(path, config)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"weight_map": {}}',
        '{"weight_map": {"a": "../x.safetensors"}}',
        '{"weight_map": {"a": 3}}',
    ],
)
def test_an_index_that_is_none(tmp_path, text):
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(UserError, match=r"model\.safetensors\.index\.json .*again\."):
        read_tensors(tmp_path / "model.safetensors.index.json")
