"""The exported encoder, run by jax.export alone and by onnxruntime, gives what `sparse_vis.encode` gives."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import onnxruntime
import pytest

import sparse_vis
from sparse_vis.commands import export
from sparse_vis.runtime.errors import UserError
from sparse_vis.types import Features
from tests import tiny_checkpoint

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
NAMES = ("cls", "sparse", "spatial", "dense", "lowrank")
# Runs in a folder with neither this repository nor its package.
STABLEHLO = """
import sys
sys.modules["sparse_vis"] = None  # importing it fails
import jax, numpy as np
exported = jax.export.deserialize(open("model.stablehlo", "rb").read())
print(*exported.platforms, exported.in_avals[0].str_short())
decoder = jax.export.deserialize(open("model.decoder.stablehlo", "rb").read())
for count in (2, 3):
    found = exported.call(np.load("images.npy")[:count])
    edited = np.roll(found["spatial"], 1, axis=1)
    np.savez(f"{count}.npz", **found, edited=decoder.call(found["sparse"], edited)["pixels"])
assert not [name for name in sys.modules if name.startswith("sparse_vis.")]
try:
    import sparse_vis
except ImportError:
    print("no package")
"""


def images_for(model):
    side = model.encoder.image_size
    return np.random.default_rng(0).integers(0, 256, (3, side, side, 3), dtype=np.uint8)


def assert_equal_to_encode(found, model, params, images):
    features = sparse_vis.encode(model, params, images)
    assert set(found) == set(NAMES)
    for name in NAMES:
        expected = np.asarray(getattr(features, name))
        assert found[name].dtype == np.float32 and found[name].shape == expected.shape, name
        np.testing.assert_allclose(found[name], expected, atol=1e-4, rtol=1e-4, err_msg=name)


def reconstructed(model, params, found, L):
    """Pixels from the S that a program returned, and an L."""
    S, side = found["sparse"], model.encoder.image_size
    features = Features(cls=None, sparse=S, dense=None, spatial=L, lowrank=L @ S, size=(side, side))
    return np.asarray(sparse_vis.reconstruct(model, params, features))


def check_decoder_description(path, model, found, output):
    path = path.with_name(f"{path.stem}.decoder{path.suffix}.json")
    about = json.loads(path.read_text())
    shapes = {name: ["batch", *found[name].shape[1:]] for name in ("sparse", "spatial")}
    assert {name: given["shape"] for name, given in about["inputs"].items()} == shapes
    assert {k: v["shape"] for k, v in about["outputs"].items()} == {
        k: ["batch", *array.shape[1:]] for k, array in output.items()
    }


def check_description(path, model, images, found):
    """The JSON beside a program says the shapes that it takes and returns."""
    about = json.loads(path.with_name(f"{path.name}.json").read_text())
    assert about["input"]["shape"] == ["batch", *images.shape[1:]] and about["input"]["dtype"] == "uint8"
    assert {name: output["shape"] for name, output in about["outputs"].items()} == {
        name: ["batch", *array.shape[1:]] for name, array in found.items()
    }
    rows, columns = about["grid"]
    assert rows * columns == found["spatial"].shape[1] and about["patch"] == model.patch
    return about


def test_stablehlo_runs_where_our_package_cannot_be_imported(tmp_path):
    path = export.export_program(GOLDEN, tmp_path / "out", "stablehlo", "pixel_p16")
    assert path == tmp_path / "out" / "pixel_p16.stablehlo"
    model, params = sparse_vis.load(GOLDEN, "pixel_p16")
    alone, images = tmp_path / "alone", images_for(model)
    alone.mkdir()
    (alone / "model.stablehlo").write_bytes(path.read_bytes())
    (alone / "model.decoder.stablehlo").write_bytes(
        (path.parent / "pixel_p16.decoder.stablehlo").read_bytes()
    )
    np.save(alone / "images.npy", images)
    done = subprocess.run(
        [sys.executable, "-c", STABLEHLO], cwd=alone, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    side = model.encoder.image_size
    assert done.stdout.splitlines() == [f"cpu cuda tpu uint8[batch,{side},{side},3]", "no package"]
    for count in (2, 3):
        with np.load(alone / f"{count}.npz") as arrays:
            found = dict(arrays)
        edited = found.pop("edited")
        assert_equal_to_encode(found, model, params, images[:count])
        about = check_description(path, model, images, found)
        expected = reconstructed(model, params, found, np.roll(found["spatial"], 1, axis=1))
        np.testing.assert_allclose(edited, expected, atol=1e-4)
        check_decoder_description(path, model, found, {"pixels": edited})
    assert about["platforms"] == ["cpu", "cuda", "tpu"]


# sizes_p14: an image size that is no multiple of the patch.
@pytest.mark.parametrize("name", ["pixel_p16", "sizes_p14"])
def test_onnxruntime_computes_the_same(name, tmp_path):
    path = export.export_program(GOLDEN, tmp_path / "out", "onnx", name)
    model, params = sparse_vis.load(GOLDEN, name)
    session, images = onnxruntime.InferenceSession(path), images_for(model)
    (given,) = session.get_inputs()
    assert (given.name, given.type, given.shape[0]) == ("images", "tensor(uint8)", "batch")
    names = [output.name for output in session.get_outputs()]
    for count in (2, 3):
        arrays = session.run(None, {"images": images[:count]})
        found = dict(zip(names, arrays, strict=True))
        assert_equal_to_encode(found, model, params, images[:count])
        # An edit outside of Python: without the first token.
        L = found["spatial"] * (np.arange(found["spatial"].shape[2]) > 0).astype(np.float32)
        decoder = onnxruntime.InferenceSession(path.with_name(f"{name}.decoder.onnx"))
        (pixels,) = decoder.run(["pixels"], {"sparse": found["sparse"], "spatial": L})
        expected = reconstructed(model, params, found, L)
        assert pixels.shape == expected.shape and np.abs(pixels - 0.5).max() <= 0.5
        np.testing.assert_allclose(pixels, expected, atol=1e-4)
    check_description(path, model, images, found)
    check_decoder_description(path, model, found, {"pixels": pixels})


def test_a_vq_decoder_gives_the_logits_of_codes(tmp_path):
    path = export.export_program(GOLDEN, tmp_path, "onnx", "vq_p16")
    model, params = sparse_vis.load(GOLDEN, "vq_p16")
    features = sparse_vis.encode(model, params, images_for(model))
    Z, grid = features.lowrank, model.grid(*features.size)
    expected = model.apply({"params": params}, Z, grid, method="decode")
    decoder = onnxruntime.InferenceSession(path.with_name("vq_p16.decoder.onnx"))
    given = {"sparse": np.asarray(features.sparse), "spatial": np.asarray(features.spatial)}
    (logits,) = decoder.run(["logits"], given)
    np.testing.assert_allclose(logits, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("kind", "feature"), [("linear", "mean_S"), ("knn", "concat_S"), ("knn", "cls")])
def test_a_probe_is_exported_with_the_encoder(kind, feature, tmp_path):
    """Also with the released weights, from which the same classes follow."""
    workdir = tmp_path / "run"
    tiny_checkpoint.write_checkpoints(workdir, {1: 1})
    plain = sparse_vis.load(workdir)
    rng = np.random.default_rng(0)
    pairs = [(rng.integers(0, 1 + 255 * (i % 3 + 1) // 3, (32, 32, 3), np.uint8), i % 3) for i in range(18)]
    names = ("dark", "medium", "light")
    sparse_vis.probe(*plain, pairs, classes=names, kind=kind, feature=feature, k=4, save=workdir)
    model, params = sparse_vis.load(workdir)
    images = images_for(model)
    _, expected = sparse_vis.classify(model, params, images)
    path = export.export_program(str(workdir), tmp_path / "out", "onnx")
    session = onnxruntime.InferenceSession(path)
    for count in (2, 3):
        (found,) = session.run(["probability"], {"images": images[:count]})
        np.testing.assert_allclose(found, expected[:count], atol=1e-4)
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == list(names)
    about = json.loads(path.with_name(f"{path.name}.json").read_text())
    assert about["classes"] == list(names) and about["outputs"]["probability"]["shape"] == ["batch", 3]
    if feature == "cls":
        path = export.export_program(str(workdir), tmp_path / "out", "stablehlo")
        program = jax.export.deserialize(path.read_bytes())
        np.testing.assert_allclose(program.call(images)["probability"], expected, atol=1e-4)
        (workdir / "probe.safetensors").rename(tmp_path / "mine.safetensors")
        export.export_released(str(workdir), tmp_path / "released", probe=str(tmp_path / "mine.safetensors"))
        again = sparse_vis.load(tmp_path / "released")
        np.testing.assert_allclose(sparse_vis.classify(*again, images)[1], expected, atol=1e-5)


def test_mistakes_are_one_sentence(tmp_path, monkeypatch):
    (tmp_path / "pixel_p16.onnx.json").write_text("")
    with pytest.raises(UserError, match=r"already holds pixel_p16\.onnx\.json; give a new --output"):
        export.export_program(GOLDEN, tmp_path, "onnx", "pixel_p16")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnx", None)
        patch.delitem(sys.modules, "sparse_vis.interop.onnx_graph", raising=False)
        patch.delattr(sparse_vis.interop, "onnx_graph", raising=False)
        with pytest.raises(UserError, match=r'needs the package onnx: pip install -e "\.\[onnx\]"'):
            export.export_program(GOLDEN, tmp_path / "out", "onnx", "pixel_p16")
    with monkeypatch.context() as patch:
        patch.setattr(export, "MAX_BYTES", 1000)
        with pytest.raises(
            UserError,
            match=r"decoder of .* has 0\.0 GiB, but --format=stablehlo files can hold at most 2 GiB; use",
        ):
            export.export_program(GOLDEN, tmp_path / "out", "stablehlo", "pixel_p16")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file cannot be written \(.*\); give another --output folder"):
        export.export_program(GOLDEN, tmp_path / "file", "onnx", "pixel_p16")


def test_the_documented_readers(tmp_path, monkeypatch, capsys):
    """The commands and snippets of docs/compatibility.md, one after the other in a folder."""
    config = tiny_checkpoint.tiny_config()
    config.name = "quickstart"
    monkeypatch.setattr(tiny_checkpoint, "tiny_config", lambda: config)
    tiny_checkpoint.write_checkpoints(tmp_path / "runs" / "quickstart", {1: 1})
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "compatibility.md").read_text()
    commands = re.findall(r"^python -m sparse_vis export (.*--format=(?:stablehlo|onnx).*)$", text, re.M)
    snippets = [
        code for code in re.findall(r"```python\n(.*?)```", text, re.S) if "exported/quickstart." in code
    ]
    assert len(commands) == len(snippets) == 2
    model, params = sparse_vis.load("runs/quickstart")
    images = images_for(model)
    np.save("images.npy", images)
    for command, code in zip(commands, snippets, strict=True):
        monkeypatch.setattr(sys, "argv", ["export", *command.split()])
        export.main()
        scope = {}
        exec(code, scope)
        assert_equal_to_encode(scope["features"], model, params, images)
        assert scope["pixels"].shape == images.shape
    written = capsys.readouterr().out.splitlines()
    assert written[0] == "wrote exported/quickstart.stablehlo and its quickstart.stablehlo.json"
