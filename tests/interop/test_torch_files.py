"""Torch files of strangers: tensors are read, nothing is run, and what is no plain tensor is named."""

from __future__ import annotations

import argparse
import os
import pathlib
import pickle
import subprocess

import ml_dtypes
import numpy as np
import pytest
import torch

from sparse_vis.interop.tensors import read_tensors
from sparse_vis.runtime.errors import UserError

pytestmark = pytest.mark.fast
VALUES = torch.tensor([[1.0, -2.0], [0.5, 3.0]])


def save(path, state, **options):
    torch.save(state, path, **options)
    return path


@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".pth.tar"])
def test_what_a_trainer_saves_beside_the_tensors_is_left_out(tmp_path, suffix):
    args = argparse.Namespace(lr=1e-3, output=pathlib.PurePosixPath("out"), best=np.float64(3))
    state = {"state_dict": {"a": VALUES}, "optimizer": {"state": {0: {"step": 3}}}, "args": args}
    found = read_tensors(save(tmp_path / f"x{suffix}", state))
    assert found.keys() == {"a"}
    np.testing.assert_array_equal(found["a"], VALUES.numpy())


KINDS = {
    "sparse": (VALUES.to_sparse(), r"a is sparse or nested; save it as tensor\.to_dense\(\)"),
    "sparse rows": (VALUES.to_sparse_csr(), "a is sparse or nested"),
    "nested": (torch.nested.nested_tensor([VALUES[0], VALUES[0, :1]]), "a is sparse or nested"),
    "quantized": (
        torch.quantize_per_tensor(VALUES, 0.1, 0, torch.qint8),
        r"a is quantized; save it as tensor\.dequantize\(\)",
    ),
    "float8": (VALUES.to(torch.float8_e4m3fn), "a is a tensor of float8_e4m3fn that NumPy cannot hold"),
    "meta": (VALUES.to("meta"), "a is on the device meta, without values"),
    "text": ("b", "a is a str"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_plain_tensor_is_named(tmp_path, kind):
    value, sentence = KINDS[kind]
    with pytest.raises(UserError, match=sentence) as caught:
        read_tensors(save(tmp_path / "x.pt", {"a": value, "b": VALUES}))
    assert str(caught.value).startswith(f"{tmp_path / 'x.pt'} ") and "\n" not in str(caught.value)


def test_lazy_values_are_computed(tmp_path):
    conjugate, other = (torch.complex(VALUES, VALUES).conj() for _ in range(2))
    state = {
        "conjugate": conjugate,
        "negative": other.imag,
        "column": VALUES.T,
        "half": VALUES.bfloat16(),
    }
    assert conjugate.is_conj() and other.imag.is_neg()
    found = read_tensors(save(tmp_path / "x.pt", state))
    values = VALUES.numpy()
    np.testing.assert_array_equal(found["conjugate"], values - 1j * values)
    np.testing.assert_array_equal(found["negative"], -values)
    np.testing.assert_array_equal(found["column"], values.T)
    np.testing.assert_array_equal(found["half"], values.astype(ml_dtypes.bfloat16))


def test_one_value_that_claims_to_be_terabytes_costs_none(tmp_path):
    found = read_tensors(save(tmp_path / "x.pt", {"a": torch.zeros(1).expand(10**12)}))
    assert found["a"].shape == (10**12,) and found["a"].strides == (0,)


@pytest.mark.parametrize("computed", [True, False])
def test_a_flipped_bit_is_seen_unless_the_file_has_no_checksums(tmp_path, computed):
    torch.serialization.set_crc32_options(computed)
    try:
        save(tmp_path / "x.pt", {"a": VALUES})
    finally:
        torch.serialization.set_crc32_options(True)
    np.testing.assert_array_equal(read_tensors(tmp_path / "x.pt")["a"], VALUES.numpy())
    if computed:
        whole = (tmp_path / "x.pt").read_bytes()
        i = whole.index(VALUES.numpy().tobytes()) + 5
        (tmp_path / "x.pt").write_bytes(whole[:i] + bytes([whole[i] ^ 4]) + whole[i + 1 :])
        assert not np.array_equal(torch.load(tmp_path / "x.pt")["a"], VALUES)  # torch notices nothing
        with pytest.raises(
            UserError, match=r"x\.pt is damaged: the checksum of x/data/0 does not match \(1 parts"
        ):
            read_tensors(tmp_path / "x.pt")


class Calls:
    """Something whose pickle asks for a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("place", ["args", "a"])
@pytest.mark.parametrize("function", [os.system, eval, subprocess.getoutput, pathlib.Path.touch, np.save])
def test_nothing_of_a_file_is_run(tmp_path, function, place, old):
    mark = tmp_path / "mark"
    asked = {os.system: f"touch {mark}", eval: f"open('{mark}', 'w')", subprocess.getoutput: f"touch {mark}"}
    call = Calls(function, asked.get(function, mark), *([VALUES] if function is np.save else []))
    pickle.loads(pickle.dumps(call))  # what a reader that trusts the file does
    made = list(tmp_path.glob("mark*"))
    assert made
    made[0].unlink()
    path = save(tmp_path / "x.pt", {"a": VALUES, place: call}, _use_new_zipfile_serialization=not old)
    with pytest.raises(UserError) as caught:
        read_tensors(path)
    assert not list(tmp_path.glob("mark*"))
    message = str(caught.value)
    assert message.startswith(f"{path} ") and "weights_only" not in message and "\n" not in message


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ({"model": torch.nn.Linear(2, 2)}, "more than a dictionary of tensors: model is a Linear; save"),
        ([VALUES], "contains a list instead of a dictionary of tensors"),
    ],
)  # fmt: skip
def test_a_file_without_a_state_dict(tmp_path, state, sentence):
    with pytest.raises(UserError, match=sentence):
        read_tensors(save(tmp_path / "x.pt", state))


def test_a_program_of_torchscript(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "x.pt"))
    with pytest.raises(UserError, match=r"x\.pt is a TorchScript program, .*only the model's state_dict\(\)"):
        read_tensors(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"\n<!DOCTYPE html><html>", "is a web page instead of a weight file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"", r"x\.pth is empty; download"),
        (b"\x20\0\0\0\0\0\0\0" + b'{"a": 1}', r"safetensors file by its content; give it the extension"),
        (b"something else", r"cannot be read as a torch file \("),
    ],
)
def test_what_a_download_turned_out_to_be(tmp_path, content, sentence):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(UserError, match=sentence) as caught:
        read_tensors(tmp_path / "x.pth")
    assert "weights_only" not in str(caught.value)
