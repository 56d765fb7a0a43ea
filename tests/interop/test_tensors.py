"""Weight files: three formats, equal arrays, and one clear sentence for what is wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import torch
from flax import serialization
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_safetensors

from sparse_vis.interop.tensors import check_tensors, read_tensors
from sparse_vis.runtime.errors import UserError

pytestmark = pytest.mark.fast
MAE = Path(__file__).parents[1] / "golden" / "mae_p16"
ARRAYS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.float16([1.5, -2.0])}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_safetensors_and_torch_files_of_one_model_agree():
    tensors = read_tensors(MAE / "model.safetensors")
    assert len(tensors) > 30
    assert tensors["vit.embeddings.cls_token"].shape == (1, 1, 48)
    assert_same(read_tensors(MAE / "pytorch_model.bin"), tensors)


def test_safetensors_keeps_names_values_and_dtypes(tmp_path):
    save_file(ARRAYS, tmp_path / "x.safetensors")
    assert_same(read_tensors(tmp_path / "x.safetensors"), ARRAYS)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_bfloat16_is_kept(tmp_path, suffix):
    values = np.array([[1.0, -2.5], [3.140625, 1e30]], np.float32)
    tensor = torch.from_numpy(values).to(torch.bfloat16)
    path = tmp_path / f"x{suffix}"
    save_torch_safetensors({"w": tensor}, path) if suffix == ".safetensors" else torch.save(
        {"w": tensor}, path
    )
    found = read_tensors(path)["w"]
    assert found.dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(found, values.astype(ml_dtypes.bfloat16))


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth"])
@pytest.mark.parametrize("nesting", [(), ("state_dict",), ("model",)])
def test_torch_file_plain_or_nested(tmp_path, suffix, nesting):
    state = {name: torch.from_numpy(array.copy()) for name, array in ARRAYS.items()}
    state["column"] = torch.arange(6).reshape(2, 3).T  # not contiguous
    for key in nesting:
        state = {key: state, "epoch": 3}
    torch.save(state, tmp_path / f"x{suffix}")
    assert_same(read_tensors(tmp_path / f"x{suffix}"), ARRAYS | {"column": np.arange(6).reshape(2, 3).T})


@pytest.mark.parametrize("name", ["x.msgpack", "checkpoint"])
def test_msgpack_is_flattened(tmp_path, name):
    tree = {"params": {"dense": {"kernel": ARRAYS["a"]}, "half": ARRAYS["b"].astype(ml_dtypes.bfloat16)}}
    (tmp_path / name).write_bytes(serialization.msgpack_serialize(tree))
    expected = {"params/dense/kernel": ARRAYS["a"], "params/half": tree["params"]["half"]}
    assert_same(read_tensors(tmp_path / name), expected)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".msgpack"])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_truncated_file_is_named(tmp_path, suffix, keep):
    path = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(ARRAYS, path)
    elif suffix == ".bin":
        torch.save({"a": torch.ones(100)}, path)
    else:
        path.write_bytes(serialization.msgpack_serialize(ARRAYS))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(keep * len(whole))])
    with pytest.raises(UserError, match=rf"weights{suffix} .*download or export it again"):
        read_tensors(path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".msgpack", ""])
def test_file_of_something_else_is_named(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    path.write_text("<html>404 Not Found</html>\n" * 20)
    with pytest.raises(UserError, match=f"weights{suffix} "):
        read_tensors(path)


def test_lfs_pointer_is_recognised(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(UserError, match="git lfs pull"):
        read_tensors(path)


def test_missing_file_folder_and_unknown_extension(tmp_path):
    for path in (tmp_path / "absent.safetensors", tmp_path):
        with pytest.raises(UserError, match="is not a file"):
            read_tensors(path)
    (tmp_path / "x.npz").write_bytes(b"")
    with pytest.raises(UserError, match=r"unknown extension \.npz; use one of \.safetensors"):
        read_tensors(tmp_path / "x.npz")


def test_torch_file_without_torch_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match=r'pytorch_model.bin .*pip install -e "\.\[torch\]"'):
        read_tensors(MAE / "pytorch_model.bin")


class Trainer:
    """Something that torch pickles only by running code."""


@pytest.mark.parametrize("state", [{"a": torch.ones(1), "step": 3}, [torch.ones(1)], {"a": Trainer()}])
def test_torch_file_with_more_than_tensors(tmp_path, state):
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(UserError, match=r"x\.pt "):
        read_tensors(tmp_path / "x.pt")


@pytest.mark.parametrize("tree", [{"a": ARRAYS["a"], "step": 3}, 7])
def test_msgpack_with_more_than_tensors(tmp_path, tree):
    (tmp_path / "x.msgpack").write_bytes(serialization.msgpack_serialize(tree))
    with pytest.raises(UserError, match=r"x\.msgpack .*tensors"):
        read_tensors(tmp_path / "x.msgpack")


def test_check_accepts_the_expected_and_the_known_unused():
    found = {"a": np.zeros((2, 3)), "pooler.weight": np.zeros(1), "scalar": np.zeros(())}
    check_tensors(found, {"a": (2, 3), "scalar": ()}, (r"pooler\..*",), "x.bin")


def test_check_names_all_faults_in_one_sentence():
    found = {"a": np.zeros((2, 3)), "b": np.zeros(2), "c": np.zeros(1), "my.pooler.weight": np.zeros(1)}
    with pytest.raises(UserError) as caught:
        check_tensors(found, {"a": (3, 2), "b": (2,), "d": (1,)}, (r"pooler\..*",), "x.bin")
    message = str(caught.value)
    assert message.startswith("x.bin does not hold this model's tensors: ")
    assert "1 missing (d)" in message
    assert "1 misshapen (a is (2, 3) instead of (3, 2))" in message
    assert "2 unexpected (c, my.pooler.weight)" in message


def test_check_lists_eight_and_counts_all():
    with pytest.raises(UserError, match=r"30 missing \(t00, t01, t02, t03, t04, t05, t06, t07 and 22 more\)"):
        check_tensors({}, {f"t{i:02d}": () for i in range(30)}, (), "x.bin")
