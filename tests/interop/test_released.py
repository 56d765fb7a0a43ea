"""Released files: every way to name one, and one sentence for everything that can be wrong with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import sparse_vis
from sparse_vis.interop import manifest
from sparse_vis.interop.load import read_model
from sparse_vis.interop.maskgit import load_tokenizer
from sparse_vis.runtime.errors import UserError

pytestmark = pytest.mark.fast
GOLDEN = Path(__file__).parents[1] / "golden"
PIXEL = GOLDEN / "pixel_p16.safetensors"
ENTRIES = json.loads((GOLDEN / "config.json").read_text())["models"]


@pytest.fixture(scope="module")
def tensors():
    return load_file(PIXEL)


@pytest.fixture
def release(tmp_path):
    """Writes a release of one model called x; returns its weights."""

    def write(tensors, **changes):
        save_file(tensors, tmp_path / "x.safetensors")
        entry = {**ENTRIES["pixel_p16"], "weights": "x.safetensors", **changes}
        (tmp_path / "config.json").write_text(json.dumps({"models": {"x": entry}}))
        return tmp_path / "x.safetensors"

    return write


def assert_pixel_p16(found, tensors):
    """Spot checks of the parameters against the file, layer axis, fused QKV and layouts included."""
    encoder, block = found.params["encoder"], found.params["encoder"]["trunk"]["blocks"]
    np.testing.assert_array_equal(encoder["queries"], tensors["sparse_tokens"])
    table = tensors["encoder.embeddings.position_embeddings"][0]
    np.testing.assert_array_equal(encoder["position_table"], table[1:])
    key = "encoder.encoder.layer.1.attention.attention.key.weight"
    np.testing.assert_array_equal(block["qkv"]["kernel"][1, :, 48:96], tensors[key].T)
    conv = tensors["encoder.embeddings.patch_embeddings.projection.weight"]
    kernel = encoder["patch_embedding"]["kernel"].reshape(16, 16, 3, 48)
    np.testing.assert_array_equal(kernel[3, 5, 2], conv[:, 2, 3, 5])


@pytest.mark.parametrize("arguments", [(PIXEL,), (str(PIXEL), "pixel_p16"), (GOLDEN, "pixel_p16")])
def test_a_file_or_a_folder_with_a_name(arguments, tensors):
    found = read_model(*arguments)
    assert_pixel_p16(found, tensors)
    m = found.config.model
    assert (m.image_size, m.patch, m.width, m.layers, m.heads, m.tokens, m.target) == (
        64,
        16,
        48,
        2,
        4,
        6,
        "pixel",
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(found.params)} == {np.dtype("float32")}
    assert {name.split(".")[1] for name in found.unused} == {"pooler", "embeddings"}


def test_a_folder_with_one_model_needs_no_name(release, tensors):
    assert_pixel_p16(read_model(release(tensors).parent), tensors)


@pytest.mark.parametrize("arguments", [("known.safetensors",), ("", "known"), ("other.safetensors", "known")])
def test_a_known_name_needs_no_manifest(tmp_path, tensors, monkeypatch, arguments):
    monkeypatch.setitem(manifest.KNOWN, "known", ENTRIES["pixel_p16"])
    for name in ("known", "other"):
        shutil.copyfile(PIXEL, tmp_path / f"{name}.safetensors")
    assert_pixel_p16(read_model(tmp_path / arguments[0], *arguments[1:]), tensors)


def test_half_precision_files_give_float32_parameters(release, tensors):
    half = {name: array.astype(np.float16) for name, array in tensors.items()}
    found = read_model(release(half))
    assert_pixel_p16(found, half)
    assert {leaf.dtype for leaf in jax.tree.leaves(found.params)} == {np.dtype("float32")}


def test_a_model_without_cls_head(release, tensors):
    rest = {name: array for name, array in tensors.items() if not name.startswith("cls_cluster_head.")}
    with pytest.raises(UserError, match=r"5 missing \(cls_cluster_head\.layer\.weight, "):
        read_model(release(rest))
    found = read_model(release(rest, do_cls=False))
    assert_pixel_p16(found, tensors)
    assert found.params["cls_head"]["prototypes"].shape == (32, 64)


def test_missing_misshapen_and_unexpected_tensors_are_all_named(release, tensors):
    broken = {name: array for name, array in tensors.items() if name != "sparse_proj.bias"}
    broken["sparse_tokens"] = tensors["sparse_tokens"][:5]
    broken["teacher_spare.weight"] = broken["encoder.extra"] = np.zeros(3, np.float32)
    with pytest.raises(UserError) as caught:
        read_model(release(broken))
    message = str(caught.value)
    assert "x.safetensors" in message and "\n" not in message
    assert "1 missing (sparse_proj.bias)" in message
    assert "1 misshapen (sparse_tokens is (5, 48) instead of (6, 48))" in message
    assert "2 unexpected (encoder.extra, teacher_spare.weight)" in message


def test_another_architecture_in_the_manifest_is_refused(release, tensors):
    with pytest.raises(UserError, match=r"16 missing \(encoder\.encoder\.layer\.2\..* and 8 more\)"):
        read_model(release(tensors, num_hidden_layers=3))


def damage(folder):
    (folder / "x.safetensors").write_bytes(PIXEL.read_bytes()[:5000])


def unname(folder):
    (folder / "config.json").write_text(json.dumps({"models": {"y": {"weights": "y.safetensors"}}}))


def unlink(name):
    return lambda folder: (folder / name).unlink()


def keep(folder):
    pass


# What is done to a release of one model x; path and name to load; the sentence.
WRONG = {
    "damaged": (
        damage,
        "x.safetensors",
        None,
        r"x\.safetensors cannot be read as a safetensors file .*; downl",
    ),
    "no manifest": (unlink("config.json"), "x.safetensors", None, r"config\.json is missing; place the"),
    "no manifest in the folder": (unlink("config.json"), "", "x", r"config\.json is missing; place the"),
    "not in the manifest": (unname, "x.safetensors", None, r"names no model with the weights x\.safetensors"),
    "weights are gone": (unlink("x.safetensors"), "", None, r"x\.safetensors is not a file; give"),
    "wrong name": (keep, "", "stellar-b61", r"has no model 'stellar-b61'; give one of the names x\."),
    "wrong name of a file": (keep, "x.safetensors", "y", r"has no model 'y'; give one of the names x\."),
    "another kind of file": (keep, "config.json", None, r"config\.json is not a released \.safetensors file"),
    "no file": (
        keep,
        "z.safetensors",
        None,
        r"z\.safetensors does not exist \(did you mean .*x\.safetensors",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_one_sentence_for(case, release, tensors):
    change, path, name, sentence = WRONG[case]
    folder = release(tensors).parent
    change(folder)
    with pytest.raises(UserError, match=sentence) as caught:
        read_model(folder / path, name)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_a_folder_of_several_models_asks_for_a_name():
    with pytest.raises(
        UserError, match="holds several models; give one of the names pixel_p16, teacher_p16, vq"
    ):
        read_model(GOLDEN)


def test_the_tokenizer_beside_the_weights_is_taken():
    model, params = sparse_vis.load(GOLDEN, "vq_p16")
    vqgan, expected = load_tokenizer(GOLDEN / "vq_p16.vqgan.safetensors", "float32")
    assert model.tokenizer == vqgan
    jax.tree.map(np.testing.assert_array_equal, params["tokenizer"], expected)


def test_without_its_tokenizer_a_model_still_encodes(tmp_path):
    for name in ("config.json", "vq_p16.safetensors"):
        shutil.copyfile(GOLDEN / name, tmp_path / name)
    model, params = sparse_vis.load(tmp_path, "vq_p16")
    assert model.tokenizer is None and "tokenizer" not in params
    with pytest.raises(UserError, match=r"weights were not found; give them as sparse_vis\.load"):
        sparse_vis.reconstruct(model, params, None)


def test_a_tokenizer_that_does_not_fit_is_refused(release):
    vq = {**ENTRIES["vq_p16"]["vq_model"], "num_embeddings": 96}
    tensors = load_file(GOLDEN / "vq_p16.safetensors")
    for name in ("weight", "bias"):
        tensors[f"reconstruction_head.{name}"] = tensors[f"reconstruction_head.{name}"][:96]
    weights = release(tensors, **{**ENTRIES["vq_p16"], "weights": "x.safetensors", "vq_model": vq})
    with pytest.raises(
        UserError, match=r"has 128 codes, but the model in .*x\.safetensors predicts 96; give the"
    ):
        sparse_vis.load(weights, tokenizer=GOLDEN / "vq_p16.vqgan.safetensors")
    with pytest.raises(UserError, match="reconstructs pixels and does not use a tokenizer"):
        sparse_vis.load(PIXEL, tokenizer=GOLDEN / "vq_p16.vqgan.safetensors")
