"""Manifests: the five released models without one, sizes filled in, and sentences for bad entries."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparse_vis.errors import UserError
from sparse_vis.interop import manifest
from sparse_vis.interop.maskgit import load_tokenizer

pytestmark = pytest.mark.fast
GOLDEN = Path(__file__).parents[1] / "golden"
ENTRIES = json.loads((GOLDEN / "config.json").read_text())["models"]
# method.md sections 1 and 9: width, layers, heads, patch, tokens
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
    "embed_dim 800, which is no released size; add num_hidden_layers and": {**SIZES, "embed_dim": 800},
    "asks for predictor_layers=3": {**SIZES, "predictor_layers": 3},
    "recon_type='latent'; supported are 2, and 'pixel' or 'vq'": {**SIZES, "recon_type": "latent"},
    "value of a wrong kind": {**SIZES, "num_sparse_tokens": "16"},
    r"wrong kind \('num_embeddings'\)": {**SIZES, "vq_model": {"z_channels": 3}},
}


@pytest.mark.parametrize("sentence", BAD_ENTRIES)
def test_bad_entries(sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        manifest.to_config(BAD_ENTRIES[sentence], "mine")
    assert str(caught.value).startswith("the manifest entry of mine ")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"models": {}}', '{"models": ["a"]}', '{"models": {"a": {"embed_dim": 3}}}'],
)
def test_what_is_no_manifest(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json is no manifest of released models, .*; download it"):
        manifest.read_manifest(tmp_path / "config.json")
