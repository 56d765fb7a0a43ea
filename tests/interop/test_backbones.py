"""Each family of backbones against its own module in torch, with random weights, at two sizes."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
    ViTMSNConfig,
    ViTMSNModel,
)  # fmt: skip

from sparse_vis.build import build_model
from sparse_vis.config.defaults import default_config
from sparse_vis.interop.backbones import find_file, read_backbone
from tests.interop.timm_vit import TimmViT

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
HALF = ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
# width, layers, heads, patch, image of the weights, image of the model
SIZES = [(24, 2, 3, 8, 32, 32), (48, 3, 4, 14, 70, 42)]
FAMILIES = {
    "google/vit": (ViTModel, ViTConfig, {}, HALF),  # epsilon 1e-12
    "google/vit, classifier": (ViTForImageClassification, ViTConfig, {"layer_norm_eps": 1e-3}, HALF),
    "facebook/dino": (ViTModel, ViTConfig, {"layer_norm_eps": 1e-12}, IMAGENET),
    "facebook/vit-msn": (ViTMSNModel, ViTMSNConfig, {}, IMAGENET),
    "facebook/dinov2": (Dinov2Model, Dinov2Config, {}, IMAGENET),
    "facebook/dinov2-with-registers": (
        Dinov2WithRegistersModel, Dinov2WithRegistersConfig, {"num_register_tokens": 3}, IMAGENET,
    ),
}  # fmt: skip


def disturbed(module):
    """Every parameter random, so that none could be left out unnoticed; the LayerNorms' input is small."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module.eval()


def config_for(size, epsilon, registers=0):
    width, layers, heads, patch, _, image = size
    config = default_config()
    config.model.update(
        width=width, layers=layers, heads=heads, patch=patch, mlp_dim=4 * width, image_size=image,
        norm_epsilon=epsilon, tokens=max(registers, 1),
    )  # fmt: skip
    config.efficiency.dtype = "float32"
    return config


def pictures(side):
    return np.random.default_rng(0).random((2, side, side, 3), np.float32)


def as_theirs(images, pixels):
    mean, std = np.float32(pixels)
    return torch.from_numpy(np.ascontiguousarray(((images - mean) / std).transpose(0, 3, 1, 2)))


def ours(path, config, images):
    """[CLS, queries, patches] of our encoder with no other queries than registers."""
    backbone = read_backbone(path, config)
    backbone.setdefault("queries", np.zeros((0, config.model.width), np.float32))
    bare = build_model(config).encoder.clone(queries=len(backbone["queries"]), parent=None)
    tokens = jax.jit(lambda params: bare.apply({"params": params}, jnp.asarray(images)))(backbone)
    return np.concatenate([tokens.cls, tokens.S, tokens.U], axis=1)


@pytest.mark.parametrize("size", SIZES, ids=["own size", "smaller image"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_of_transformers_encodes_as_its_module(tmp_path, family, size):
    Model, Config, settings, pixels = FAMILIES[family]
    width, layers, heads, patch, image, shown = size
    described = Config(
        hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads, patch_size=patch,
        image_size=image, **{"intermediate_size": 4 * width} | settings,
    )  # fmt: skip
    module, images = disturbed(Model(described)), pictures(shown)
    whole = getattr(module, "vit", module)
    resized = {} if "dinov2" in family else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        expected = whole(as_theirs(images, pixels), **resized).last_hidden_state.numpy()
    config = config_for(size, described.layer_norm_eps, settings.get("num_register_tokens", 0))
    for original in (True, False):  # names of transformers 4 and 5
        folder = tmp_path / str(original)
        module.save_pretrained(folder, save_original_format=original)
        scaling = dict(zip(("image_mean", "image_std"), pixels, strict=True))
        (folder / "preprocessor_config.json").write_text(json.dumps(scaling))
        found = ours(find_file(str(folder)), config, images)
        np.testing.assert_allclose(found, expected, atol=2e-5)


TIMM = {
    "plain": {},
    "DINOv2": {"scaled": True},
    "DINOv2 with registers": {"scaled": True, "registers": 3, "no_embed_class": True},
}


@pytest.mark.parametrize("size", [SIZES[0], (48, 3, 4, 14, 42, 42)], ids=["8", "14"])
@pytest.mark.parametrize("kind", TIMM)
def test_timms_names(tmp_path, kind, size):
    width, layers, heads, patch, image, shown = size
    module, images = disturbed(TimmViT(image, patch, width, layers, heads, **TIMM[kind])), pictures(shown)
    with torch.no_grad():
        expected = module(as_theirs(images, HALF)).numpy()
    head = {"head.weight": torch.ones(5, width), "head.bias": torch.ones(5)}
    save_file({**module.state_dict(), **head}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(
        json.dumps({"architecture": "vit", "pretrained_cfg": dict(mean=HALF[0], std=HALF[1])})
    )
    config = config_for(size, 1e-6, TIMM[kind].get("registers", 0))
    found = ours(find_file(str(tmp_path)), config, images)
    np.testing.assert_allclose(found, expected, atol=2e-5)
