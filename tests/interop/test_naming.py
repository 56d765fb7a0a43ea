"""The same weights under other people's names, each against an oracle that knows these names by itself."""

from __future__ import annotations

import argparse
import json
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch.nn import functional
from transformers import ViTConfig, ViTModel

from sparse_vis.build import build_model
from sparse_vis.interop.backbones import find_file, read_backbone
from sparse_vis.interop.load import read_model
from sparse_vis.runtime.errors import UserError
from tests.interop.mae_config import config_of

GOLDEN = Path(__file__).parents[1] / "golden"
MAE = GOLDEN / "mae_p16"
HEADS, LAYERS = 4, 2


@pytest.fixture(scope="module")
def tensors():
    return load_file(MAE / "model.safetensors")


@pytest.fixture
def config():
    return config_of(MAE)


def original(t):
    """The tensors by the names of facebookresearch/mae, models_mae.py, written out by hand."""
    named = {
        "cls_token": t["vit.embeddings.cls_token"],
        "pos_embed": t["vit.embeddings.position_embeddings"],
        "patch_embed.proj.weight": t["vit.embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": t["vit.embeddings.patch_embeddings.projection.bias"],
    }
    for leaf in ("weight", "bias"):
        named[f"norm.{leaf}"] = t[f"vit.layernorm.{leaf}"]
        for i in range(LAYERS):
            old, new = f"vit.encoder.layer.{i}", f"blocks.{i}"
            parts = [t[f"{old}.attention.attention.{part}.{leaf}"] for part in ("query", "key", "value")]
            named[f"{new}.attn.qkv.{leaf}"] = np.concatenate(parts)
            named[f"{new}.attn.proj.{leaf}"] = t[f"{old}.attention.output.dense.{leaf}"]
            named[f"{new}.norm1.{leaf}"] = t[f"{old}.layernorm_before.{leaf}"]
            named[f"{new}.norm2.{leaf}"] = t[f"{old}.layernorm_after.{leaf}"]
            named[f"{new}.mlp.fc1.{leaf}"] = t[f"{old}.intermediate.dense.{leaf}"]
            named[f"{new}.mlp.fc2.{leaf}"] = t[f"{old}.output.dense.{leaf}"]
    return named


def original_forward(t, images):
    """The encoder of facebookresearch/mae without masking, its tensors read by its own names.

    Returns CLS and patches. Its LayerNorms have epsilon 1e-6, those of the recordings 1e-12.
    """
    t = {name: torch.from_numpy(np.array(array)) for name, array in t.items()}

    def linear(x, name):
        return functional.linear(x, t[f"{name}.weight"], t[f"{name}.bias"])

    def norm(x, name):
        return functional.layer_norm(x, x.shape[-1:], t[f"{name}.weight"], t[f"{name}.bias"], 1e-12)

    x = functional.conv2d(images, t["patch_embed.proj.weight"], t["patch_embed.proj.bias"], stride=16)
    x = x.flatten(2).transpose(1, 2) + t["pos_embed"][:, 1:]
    x = torch.cat([(t["cls_token"] + t["pos_embed"][:, :1]).expand(len(x), -1, -1), x], dim=1)
    for i in range(LAYERS):
        batch, length, width = x.shape
        qkv = linear(norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv")
        q, k, v = qkv.reshape(batch, length, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * (width // HEADS) ** -0.5).softmax(dim=-1)
        x = x + linear((weights @ v).transpose(1, 2).reshape(batch, length, width), f"blocks.{i}.attn.proj")
        hidden = functional.gelu(linear(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1"))
        x = x + linear(hidden, f"blocks.{i}.mlp.fc2")
    x = norm(x, "norm")
    return x[:, :1].numpy(), x[:, 1:].numpy()


def normalised(images):
    """(B, H, W, 3) in [0, 1] -> torch (B, 3, H, W) as the MAE sees it."""
    x = (images - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2), np.float32))


def as_transformers_5(t):
    """The names that the modules of transformers 5 have, written out by hand."""
    for new, old in (
        ("attention.q_proj", "attention.attention.query"), ("attention.k_proj", "attention.attention.key"),
        ("attention.v_proj", "attention.attention.value"), ("attention.o_proj", "attention.output.dense"),
        ("mlp.fc1", "intermediate.dense"), ("mlp.fc2", "output.dense"),
    ):  # fmt: skip
        t = {re.sub(rf"(layer\.\d+)\.{re.escape(old)}\.", rf"\1.{new}.", name): x for name, x in t.items()}
    return {name.replace("encoder.layer.", "layers."): x for name, x in t.items()}


def encoder_alone(t):
    return {name.removeprefix("vit."): x for name, x in t.items() if name.startswith("vit.")}


def wrapped(prefix):
    return lambda t: {prefix + name: x for name, x in t.items()}


NAMINGS = {
    "original": original,
    "original with its decoder": lambda t: {
        **original(t), "mask_token": np.zeros((1, 1, 32)), "decoder_blocks.0.attn.qkv.bias": np.zeros(96),
        "decoder_pos_embed": np.zeros((1, 17, 32)), "decoder_pred.bias": np.zeros(768),
    },
    "ViTModel": lambda t: {**encoder_alone(t), "pooler.dense.weight": np.zeros((48, 48), np.float32)},
    "transformers 5": as_transformers_5,
    "ViTModel of transformers 5": lambda t: as_transformers_5(encoder_alone(t)),
    "DistributedDataParallel": wrapped("module."),
    "torch.compile": wrapped("_orig_mod."),
    "both": wrapped("module._orig_mod."),
    "a trainer's attribute": wrapped("model."),
    "a compiled part": lambda t: {
        n.replace("vit.encoder.", "vit.encoder._orig_mod."): x for n, x in t.items()
    },
}  # fmt: skip


@pytest.mark.fast
@pytest.mark.parametrize("naming", NAMINGS)
def test_the_same_weights_under_another_naming_give_identical_parameters(naming, tmp_path, config, tensors):
    renamed = {n: np.ascontiguousarray(x, np.float32) for n, x in NAMINGS[naming](tensors).items()}
    assert renamed.keys() != tensors.keys()
    save_file(renamed, tmp_path / "x.safetensors")
    expected = read_backbone(MAE / "model.safetensors", config)
    if "original" in naming:
        config.model.norm_epsilon = 1e-6  # theirs
    jax.tree.map(np.testing.assert_array_equal, read_backbone(tmp_path / "x.safetensors", config), expected)


@pytest.mark.fast
def test_the_original_naming_computes_what_was_recorded(tensors):
    """The test above compares our reader with `original`; this one `original` with the recordings."""
    recorded = load_file(MAE / "expected.safetensors")
    cls, patches = original_forward(original(tensors), normalised(recorded["in.image"]))
    np.testing.assert_allclose(cls, recorded["out.cls"].reshape(cls.shape), atol=2e-5)
    np.testing.assert_allclose(patches, recorded["out.patches"], atol=2e-5)


@pytest.mark.fast
def test_a_pretraining_checkpoint_with_optimizer_and_namespace(tmp_path, config, tensors):
    """As main_pretrain.py of facebookresearch/mae saves it."""
    model = {name: torch.from_numpy(np.array(x)) for name, x in original(tensors).items()}
    args = argparse.Namespace(model="mae_vit_base_patch16", blr=1e-3, output_dir=Path("out"))
    rest = {"optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}, "epoch": 799, "scaler": {}, "args": args}
    torch.save({"model": model, **rest}, tmp_path / "checkpoint-799.pth")
    expected = read_backbone(MAE / "model.safetensors", config)
    config.model.norm_epsilon = 1e-6
    found = read_backbone(tmp_path / "checkpoint-799.pth", config)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_folder_of_transformers_encodes_as_transformers_does(tmp_path, config):
    """Random weights, written by the library itself: in its modules' names, and in those of its old files."""
    torch.manual_seed(0)
    vit = ViTModel(ViTConfig(**json.loads((MAE / "config.json").read_text()))).eval()
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    images = np.random.default_rng(0).random((2, 64, 64, 3), np.float32)
    with torch.no_grad():
        expected = vit(normalised(images)).last_hidden_state.numpy()
    bare = build_model(config).encoder.clone(queries=0, parent=None)
    encode = jax.jit(lambda params: bare.apply({"params": params}, jnp.asarray(images)))
    for kind in (True, False):
        folder = tmp_path / str(kind)
        vit.save_pretrained(folder, save_original_format=kind)
        backbone = read_backbone(find_file(str(folder)), config)
        tokens = encode({**backbone, "queries": np.zeros((0, 48), np.float32)})
        np.testing.assert_allclose(np.concatenate([tokens.cls, tokens.U], axis=1), expected, atol=2e-5)


@pytest.mark.fast
@pytest.mark.parametrize("rename", [as_transformers_5, wrapped("module."), wrapped("_orig_mod.")])
def test_a_released_model_under_another_naming(tmp_path, rename):
    renamed = rename(load_file(GOLDEN / "pixel_p16.safetensors"))
    save_file(renamed, tmp_path / "pixel_p16.safetensors")
    shutil.copyfile(GOLDEN / "config.json", tmp_path / "config.json")
    found = read_model(tmp_path / "pixel_p16.safetensors").params
    jax.tree.map(np.testing.assert_array_equal, found, read_model(GOLDEN, "pixel_p16").params)


@pytest.mark.fast
def test_a_released_model_in_a_trainers_checkpoint(tmp_path):
    tensors = load_file(GOLDEN / "pixel_p16.safetensors")
    model = {f"module.{name}": torch.from_numpy(array) for name, array in tensors.items()}
    torch.save({"model": model, "optimizer": {}, "args": argparse.Namespace()}, tmp_path / "last.pth")
    entry = json.loads((GOLDEN / "config.json").read_text())["models"]["pixel_p16"]
    (tmp_path / "config.json").write_text(json.dumps({"models": {"x": {**entry, "weights": "last.pth"}}}))
    found = read_model(tmp_path / "last.pth").params
    jax.tree.map(np.testing.assert_array_equal, found, read_model(GOLDEN, "pixel_p16").params)


@pytest.mark.fast
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda t: {name.replace(".layer.", ".stage."): x for name, x in t.items()},
            r"known names \(found: decoder.* and 54 more\); .*vit\.embeddings.*blocks\.0.*sparse_tokens",
        ),
        (lambda t: {**t, "module.decoder.mask_token": np.zeros(1)}, r"contains decoder\.mask_token twice"),
        (lambda t: {**original(t), "neck.bias": np.zeros(9)}, r"1 unexpected \(neck\.bias\)"),
        (
            lambda t: {name: x for name, x in original(t).items() if name != "blocks.1.attn.qkv.bias"},
            r"1 missing \(blocks\.1\.attn\.qkv\.bias\)",
        ),
        (
            lambda t: {**original(t), "blocks.0.attn.qkv.bias": np.zeros(96)},
            r"blocks\.0\.attn\.qkv\.bias is \(96,\) instead of \(144,\)",
        ),
    ],
)  # fmt: skip
def test_what_is_no_renaming_is_said_in_the_files_own_names(tmp_path, config, tensors, change, sentence):
    save_file({n: np.ascontiguousarray(x) for n, x in change(tensors).items()}, tmp_path / "x.safetensors")
    config.model.norm_epsilon = 1e-6  # of the original
    with pytest.raises(UserError, match=sentence):
        read_backbone(tmp_path / "x.safetensors", config)
