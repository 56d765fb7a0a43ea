"""Models in the released form: bit-exact there and back, complete enough for a strict load in torch."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import load_file

import sparse_vis
from sparse_vis.commands import export
from sparse_vis.interop.load import read_model
from sparse_vis.runtime.errors import UserError, command_line
from tests import tiny_checkpoint
from tests.tiny_checkpoint import PATCH, SIZE, TOKENS, WIDTH

GOLDEN = Path(__file__).parent.parent / "golden"
NAMES = ["pixel_p16", "teacher_p16", "vq_p16", "sizes_p14"]
VQGAN = GOLDEN / "vq_p16.vqgan.safetensors"


def assert_same_tensors(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        assert ours[name].dtype == array.dtype, name
        np.testing.assert_array_equal(ours[name], array, err_msg=name)


def vq_teacher_config():
    config = TINY()
    config.name = "vq/teacher"
    config.model.target = "vq"
    config.model.tokenizer.update(path=str(VQGAN), codes=128)
    config.teacher.enabled = True
    return config


TINY = tiny_checkpoint.tiny_config


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("plain")
    tiny_checkpoint.write_checkpoints(path, {3: 1, 7: 2})
    return path


@pytest.fixture(scope="module")
def vq_workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("vq")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_checkpoint, "tiny_config", vq_teacher_config)
        tiny_checkpoint.write_checkpoints(path, {3: 1})
    return path


@pytest.mark.parametrize("name", NAMES)
def test_released_models_come_back_tensor_by_tensor(tmp_path, name):
    weights = export.export_released(GOLDEN, tmp_path / "out", name)
    assert weights == tmp_path / "out" / f"{name}.safetensors"
    assert_same_tensors(load_file(weights), load_file(GOLDEN / f"{name}.safetensors"))
    before, after = read_model(GOLDEN, name), read_model(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, after.params, before.params)
    assert after.config.to_dict() == before.config.to_dict()
    if before.tokenizer is not None:
        assert after.tokenizer.read_bytes() == before.tokenizer.read_bytes()
    entry = json.loads((tmp_path / "out" / "config.json").read_text())["models"][name]
    assert entry["vq_model"] == json.loads((GOLDEN / "config.json").read_text())["models"][name]["vq_model"]


def test_our_checkpoint_there_and_back(tmp_path, workdir):
    first = export.export_released(workdir, tmp_path / "a")
    assert first.stat().st_mode == (tmp_path / "a" / "config.json").stat().st_mode, "others may read it too"
    model, params = sparse_vis.load(workdir)
    again, same = sparse_vis.load(tmp_path / "a")
    assert again == model
    jax.tree.map(np.testing.assert_array_equal, same, params)
    second = export.export_released(first, tmp_path / "b")
    assert second.read_bytes() == first.read_bytes()
    assert (tmp_path / "b" / "config.json").read_text() == (tmp_path / "a" / "config.json").read_text()


def test_a_step_folder_is_that_step(tmp_path, workdir):
    steps = {step: workdir / "checkpoints" / step for step in ("3", "7")}
    written = {
        s: load_file(export.export_released(p, tmp_path / s))["sparse_tokens"] for s, p in steps.items()
    }
    assert np.abs(written["3"] - written["7"]).max() > 0.1


def test_our_checkpoint_has_every_tensor_of_a_published_one(tmp_path, workdir):
    """Same depths as sizes_p14, hence the same names; sizes by hand, unused tensors zero."""
    ours, theirs = (
        load_file(export.export_released(workdir, tmp_path / "x")),
        load_file(GOLDEN / "sizes_p14.safetensors"),
    )
    assert ours.keys() == theirs.keys()
    assert ours["reconstruction_head.weight"].shape == (16, 3, PATCH, PATCH)
    assert ours["encoder.embeddings.position_embeddings"].shape == (1, 1 + (SIZE // PATCH) ** 2, WIDTH)
    assert ours["sparse_tokens"].shape == (TOKENS, WIDTH)
    unused = {name for name in ours if re.search(r"pooler|^decoder\.embeddings", name)}
    assert len(unused) == 8 and not any(ours[name].any() for name in unused)
    assert all(array.any() for name, array in ours.items() if name not in unused)
    assert ours["encoder.pooler.dense.weight"].shape == (WIDTH, WIDTH)
    assert ours["decoder.pooler.dense.bias"].shape == (16,)
    # A default ViT's, whatever patch and size the model has; the width is the decoder's.
    for name in unused:
        if name.startswith("decoder.embeddings"):
            assert ours[name].shape == tuple(16 if side == 64 else side for side in theirs[name].shape), name


def test_the_teacher_is_written_too(tmp_path, vq_workdir):
    ours = load_file(export.export_released(vq_workdir, tmp_path / "x"))
    theirs = load_file(GOLDEN / "teacher_p16.safetensors")

    def teachers(tensors):
        return {name for name in tensors if name.startswith("teacher_")}

    assert teachers(ours) == teachers(theirs)
    with ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.restore((vq_workdir / "checkpoints" / "3" / "rest").resolve())["teacher"]
    np.testing.assert_array_equal(ours["teacher_sparse_tokens"], saved["encoder"]["queries"])
    np.testing.assert_array_equal(ours["teacher_head.layer.weight"], saved["sparse_head"]["prototypes"].T)
    kernel = saved["encoder"]["trunk"]["blocks"]["mlp_in"]["kernel"][1]
    np.testing.assert_array_equal(ours["teacher_encoder.encoder.layer.1.intermediate.dense.weight"], kernel.T)
    assert np.any(ours["teacher_sparse_tokens"] != ours["sparse_tokens"])
    assert not ours["teacher_encoder.pooler.dense.weight"].any()
    again = load_file(export.export_released(tmp_path / "x", tmp_path / "y"))
    assert_same_tensors(again, ours)


def test_the_tokenizer_is_copied_and_used(tmp_path, vq_workdir):
    weights = export.export_released(vq_workdir, tmp_path / "x")
    assert weights.name == "vq-teacher.safetensors"
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == [
        "config.json", "vq-teacher.safetensors", "vq-teacher.vqgan.safetensors",
    ]  # fmt: skip
    model, params = sparse_vis.load(tmp_path / "x")
    before, expected = sparse_vis.load(vq_workdir)
    assert model == before and model.tokenizer is not None
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def run(monkeypatch, capsys, *arguments):
    """The command line: (exit message or None, standard output)."""
    monkeypatch.setattr(sys, "argv", ["export", *map(str, arguments)])
    try:
        command_line(export.main)
    except SystemExit as end:
        return end.code, capsys.readouterr().out
    return None, capsys.readouterr().out


def test_the_command_says_what_it_wrote(tmp_path, monkeypatch, capsys, workdir):
    arguments = (f"--checkpoint={workdir}", "--format=released", f"--output={tmp_path / 'x'}")
    code, printed = run(monkeypatch, capsys, *arguments)
    assert code is None
    assert printed == f"wrote {tmp_path / 'x' / 'default.safetensors'} and its config.json\n"
    code, _ = run(monkeypatch, capsys, *arguments)
    assert code == f"error: {tmp_path / 'x'} already holds a config.json; give a new --output folder."


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--checkpoint=nowhere"], "error: checkpoint nowhere does not exist; give "),
        ([f"--checkpoint={GOLDEN}"], "error: .* holds several models; give one of the names pixel_p16, "),
        (
            [f"--checkpoint={GOLDEN}", "--name=x"],
            "error: .* has no model 'x'; give one of the names pixel_p16, ",
        ),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, monkeypatch, capsys, arguments, sentence):
    code, _ = run(monkeypatch, capsys, *arguments, f"--output={tmp_path / 'out'}")
    assert re.match(sentence, code) and "\n" not in code
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    arguments = (f"--checkpoint={GOLDEN}", "--name=sizes_p14", f"--output={tmp_path / 'file'}")
    code, _ = run(monkeypatch, capsys, *arguments)
    assert re.match(r"error: .*file cannot be written \(.*\); give another --output\.$", code)


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    def full(_, path, *rest):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "write_safetensors", full)
    with pytest.raises(UserError, match=r"No space left on device.*free disk space and repeat the command"):
        export.export_released(GOLDEN, tmp_path / "out", "sizes_p14")
    assert not list((tmp_path / "out").iterdir())
