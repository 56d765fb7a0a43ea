"""Manifests: the five released models without one, sizes filled in, and sentences for bad entries."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path

import pytest

from sparse_vis.interop import load, manifest
from sparse_vis.interop.load import read_model
from sparse_vis.interop.maskgit import load_tokenizer
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.files import write_json

pytestmark = pytest.mark.fast
GOLDEN = Path(__file__).parents[1] / "golden"
ENTRIES = json.loads((GOLDEN / "config.json").read_text())["models"]
# docs/method.md sections 1 and 9: width, layers, heads, patch, tokens
RELEASED = {
    "stellar-b16": (768, 12, 12, 16, 16),
    "stellar-l16": (1024, 24, 16, 16, 16),
    "stellar-h16": (1280, 32, 16, 14, 16),
    "stellar-b8": (768, 12, 12, 16, 8),
    "stellar-b24": (768, 12, 12, 16, 24),
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_names_are_known_without_a_manifest(name):
    config = manifest.to_config({}, name)
    m = config.model
    assert (m.width, m.layers, m.heads, m.patch, m.tokens) == RELEASED[name]
    assert (m.mlp_dim, m.image_size, m.spatial_temperature, m.target) == (4 * m.width, 224, 0.06, "vq")
    assert dict(m.decoder) == {"width": 512, "layers": 6, "heads": 8, "mlp_dim": 2048}
    assert dict(m.prototypes) == {"count": 16384, "dim": 256, "hidden": 2048}
    assert m.tokenizer.codes == 1024 and config.loss.reconstruction == 0.05


def test_the_manifest_decides_where_it_differs():
    entry = {"num_sparse_tokens": 12, "spatial_temp": 0.1, "num_decoder_layers": 4, "recon_type": "pixel"}
    config = manifest.to_config({**entry, "image_size": None}, "stellar-b16")
    m = config.model
    assert (m.tokens, m.spatial_temperature, m.decoder.layers, m.target) == (12, 0.1, 4, "pixel")
    assert config.loss.reconstruction == 10 and m.image_size == 224


@pytest.mark.parametrize("name", ENTRIES)
def test_entry_to_configuration_and_back(name):
    config = manifest.to_config(ENTRIES[name], name)
    entry = manifest.from_config(config, ENTRIES[name]["weights"])
    apart = {"vq_model", "expected", "sizes", "run", "trajectory"}
    assert entry.keys() - apart == ENTRIES[name].keys() - apart
    assert {k: v for k, v in ENTRIES[name].items() if k not in apart}.items() <= entry.items()
    assert manifest.to_config(entry, name).to_dict() == config.to_dict()


def test_the_tokenizers_entry_is_the_recorded_one():
    vqgan, _ = load_tokenizer(GOLDEN / "vq_p16.vqgan.safetensors")
    assert manifest.vq_entry(vqgan, "vq_p16.vqgan.safetensors") == ENTRIES["vq_p16"]["vq_model"]


SIZES = {"embed_dim": 768, "patch_size": 16}
BAD_ENTRIES = {
    "lacks 'embed_dim'; add it": {"patch_size": 16},
    "lacks 'patch_size'; add it": {"embed_dim": 768},
    "embed_dim 800, which is not a released size; add num_hidden_layers and": {**SIZES, "embed_dim": 800},
}


@pytest.mark.parametrize("sentence", BAD_ENTRIES)
def test_sizes_that_are_missing(sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        manifest.to_config(BAD_ENTRIES[sentence], "mine")
    assert str(caught.value).startswith("the manifest entry of mine ")


NO_MANIFEST = [
    "", "{", "[]", "{}", "null", "3", "NaN", '"models"', "models: {}", b"\xff\xfe{", "[" * 100_000,
    '{"models": {}}', '{"models": []}', '{"models": null}', '{"models": ["a"]}', '{"models": "a"}',
    '{"models": {"a": null}}', '{"models": {"a": []}}', '{"models": {"a": "a.safetensors"}}',
    '{"models": {"a": {"embed_dim": 3}}}', '{"models": {"a": {"weights": null}}}',
    '{"models": {"a": {"weights": ["a"]}}}', '{"models": {"a\\nb": {"weights": "a"}}}',
    '{"models": {"a": {"weights": "a", "embed_dim": ' + "9" * 5000 + "}}}",
]  # fmt: skip


def test_what_is_no_manifest(tmp_path):
    for text in NO_MANIFEST:
        (tmp_path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(UserError, match=r"config\.json .*not a (manifest of rel|JSON object)"):
            read_model(tmp_path)


def test_a_changed_number_of_our_own_manifest_is_noticed_and_missing_weights_are_named(tmp_path):
    write_json(tmp_path / "config.json", {"models": {"pixel_p16": ENTRIES["pixel_p16"]}})
    with pytest.raises(UserError, match=r"pixel_p16\.safetensors is not a file; give"):
        read_model(tmp_path)
    shutil.copy(GOLDEN / "pixel_p16.safetensors", tmp_path)
    assert read_model(tmp_path).config.model.heads == ENTRIES["pixel_p16"]["num_attention_heads"] == 4
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(
        text.replace('"num_attention_heads": 4', '"num_attention_heads": 2')
    )
    with pytest.raises(UserError, match=r'config\.json is damaged or .*delete its line "checksum" if'):
        read_model(tmp_path)


COUNTS = [
    "image_size", "patch_size", "embed_dim", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "num_sparse_tokens", "num_clusters", "prototype_dim", "predictor_hidden_size", "num_decoder_layers",
    "decoder_hidden_size", "decoder_attention_heads", "decoder_intermediate_size", "vq_model.num_embeddings",
]  # fmt: skip
LONG = "x" * 300
OUTSIDE = [
    json.dumps(name)
    for name in ("/etc/passwd", "../x", "a/../../x", "..", ".", "", "//x", "a\0b", "\ud800", "\n", LONG)
]
# What a key is given, as JSON has it, in a manifest that is right otherwise: the sentence -> such values.
NO_COUNT = {
    "is too small; it must be at least": ["0", "-1"],
    "is too large; it must be at most": ["1000000000"],  # a loop over so many layers would never end
    "is not a whole number": ['"16"', "16.5", "true", "[16]", "NaN", "1e400", "{}"],
}
MALFORMED = {
    **dict.fromkeys(COUNTS, NO_COUNT),
    "spatial_temp": {
        "is too small": ["0", "-1"],
        "is not a finite float32 number": ["NaN", "Infinity", '"0.06"', "[0.06]", "true", "{}"],
    },
    "do_cls": {"is neither True nor False": ['"no"', "0", "1", "[]", "NaN"]},
    "recon_type": {"use 'pixel' or 'vq'": ['"latent"', "1", "[]", "true", '["vq"]']},
    "predictor_layers": {"only 2 is supported": ["3", '"2"', "[2]", "NaN"]},
    "vq_model": {"num_embeddings": ["3", '"x"', "[]", "true", "{}", '{"z_channels": 3}']},
    "weights": {"outside the release's folder": OUTSIDE},
    "vq_model.weights": {"outside the release's folder": [*OUTSIDE, "null", "3", '["a"]']},
}
CANNOT_BE = {
    "num_attention_heads": {"width=48 is not a multiple of its heads": ["5"]},
    "decoder_attention_heads": {"decoder.width=64 is not a multiple of its heads": ["5"]},
    "patch_size": {"image_size=64 is not a multiple": ["15"]},
}


@pytest.mark.parametrize(("key", "cases"), [*MALFORMED.items(), *CANNOT_BE.items()])
def test_a_malformed_manifest_is_refused_before_its_weights_are_looked_for(tmp_path, key, cases):
    *section, last = key.split(".")
    for sentence, value in ((sentence, value) for sentence, values in cases.items() for value in values):
        entry = copy.deepcopy(ENTRIES["vq_p16"]) | {"weights": "x.safetensors"}
        (entry[section[0]] if section else entry)[last] = "HERE"
        text = json.dumps({"models": {"x": entry}}).replace('"HERE"', value)
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=re.escape(sentence)) as caught:
            read_model(tmp_path)
        assert str(caught.value).startswith("the manifest entry of x ") and str(caught.value).isprintable()
        assert len(str(caught.value)) < 250


def test_a_model_that_cannot_be_in_the_file_is_refused_before_its_tensors_are_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(load, "released_shapes", None)
    shutil.copyfile(GOLDEN / "pixel_p16.safetensors", tmp_path / "x.safetensors")
    large = {"embed_dim": 2**18, "num_hidden_layers": 1000, "image_size": 8192, "patch_size": 1}
    entry = {**ENTRIES["pixel_p16"], **large, "weights": "x.safetensors"}
    (tmp_path / "config.json").write_text(json.dumps({"models": {"x": entry}}))
    with pytest.raises(UserError, match=r"x\.safetensors \(1391436 bytes\) is too small for the \d{14,}"):
        read_model(tmp_path)


def test_weights_may_be_a_link_as_in_the_hubs_cache(tmp_path):
    (tmp_path / "snapshot").mkdir()
    shutil.copyfile(GOLDEN / "pixel_p16.safetensors", tmp_path / "blob")
    (tmp_path / "snapshot" / "x.safetensors").symlink_to(tmp_path / "blob")
    entry = {**ENTRIES["pixel_p16"], "weights": "x.safetensors"}
    (tmp_path / "snapshot" / "config.json").write_text(json.dumps({"models": {"x": entry}}))
    assert read_model(tmp_path / "snapshot").config.model.width == 48


def test_the_epsilon_of_another_backbone_is_written_and_read():
    """Published manifests do not have it: theirs is 1e-12."""
    config = manifest.to_config(SIZES, "x")
    assert config.model.norm_epsilon == 1e-12 and "layer_norm_eps" not in manifest.from_config(config, "f")
    config.model.norm_epsilon = 1e-6
    entry = manifest.from_config(config, "f")
    assert entry["layer_norm_eps"] == 1e-6 and manifest.to_config(entry, "x").model.norm_epsilon == 1e-6
