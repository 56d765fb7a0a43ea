"""Each family of backbones against its own module in torch, with random weights, at two sizes."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import serialization
from safetensors.torch import save_file
from transformers import (
    DeiTConfig,
    DeiTModel,
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
from sparse_vis.runtime.errors import UserError
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


SIZE = (24, 2, 3, 8, 32, 32)


@pytest.fixture(scope="module")
def plain():
    state = disturbed(TimmViT(32, 8, 24, 2, 3)).state_dict()
    return {name: tensor.detach() for name, tensor in state.items()}


@pytest.fixture(scope="module")
def expected(plain, tmp_path_factory):
    path = tmp_path_factory.mktemp("plain") / "model.safetensors"
    save_file(plain, path)
    return read_backbone(path, config_for(SIZE, 1e-6))


def below(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


def other(state):
    return {name: 2 * tensor for name, tensor in state.items()}


HEAD = {"head.mlp.0.weight": torch.ones(3, 24)}
CHECKPOINTS = {
    "dino_deitsmall16_pretrain.pth": lambda s: s,
    # As main_dino.py saves it: the student's names have those of DistributedDataParallel.
    "DINO.pth": lambda s: {
        "student": below("module.backbone.", other(s)) | below("module.", HEAD),
        "teacher": below("backbone.", s) | HEAD, "optimizer": {"state": {}}, "epoch": 3,
    },
    # As DINOv2 saves its teacher.
    "teacher_checkpoint.pth": lambda s: {
        "teacher": below("backbone.", s) | below("backbone.", {"mask_token": torch.zeros(1, 24)})
        | below("dino_", HEAD)
    },
    "both in one dictionary.pth": lambda s: {
        "model": below("student.backbone.", other(s)) | below("teacher.backbone.", s)
    },
    # As MoCo v3 saves it; its projection is the head of the ViT.
    "vit-b-300ep.pth.tar": lambda s: {
        "arch": "vit_base", "epoch": 300,
        "state_dict": below("module.base_encoder.", {**s, "head.0.weight": torch.ones(3, 24)})
        | below("module.momentum_encoder.", other(s)) | {"module.predictor.0.weight": torch.ones(3, 3)},
    },
    "Lightning.ckpt": lambda s: {
        "state_dict": below("model.", s), "pytorch-lightning_version": "2.5", "callbacks": {}, "loops": {},
    },
    "Lightning, projection.ckpt": lambda s: {
        "state_dict": below("net.vit.", s) | {"projection.weight": torch.ones(3, 24)}
    },
    "lightly.ckpt": lambda s: {
        "state_dict": below("teacher_backbone.", s) | below("student_backbone.", other(s))
    },
}  # fmt: skip


@pytest.mark.fast
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoints_of_trainers(tmp_path, plain, expected, name):
    torch.save(CHECKPOINTS[name](plain), tmp_path / name)
    found = read_backbone(tmp_path / name, config_for(SIZE, 1e-6))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.fast
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sharded_half_precision(tmp_path, plain, dtype):
    """Values that both types hold exactly, in two files."""
    state = {name: (8 * tensor).round().to(dtype) for name, tensor in plain.items()}
    shards, names = {}, sorted(state)
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: state[name] for name in part}, tmp_path / file)
        shards |= dict.fromkeys(part, file)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    save_file({name: tensor.float() for name, tensor in state.items()}, tmp_path / "x.safetensors")
    config = config_for(SIZE, 1e-6)
    trees = (read_backbone(path, config) for path in (find_file(str(tmp_path)), tmp_path / "x.safetensors"))
    jax.tree.map(np.testing.assert_array_equal, *trees)


@pytest.mark.fast
def test_two_backbones_of_which_none_is_preferred(tmp_path, plain):
    torch.save(below("backbone.", plain) | below("backbone_momentum.", plain), tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"2 backbones \(backbone\.\*, backbone_momentum\.\*\); save the"):
        read_backbone(tmp_path / "x.pth", config_for(SIZE, 1e-6))


DISGUISED = {
    "is a Git-LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 346\n",
    "is a web page": b"\n<!DOCTYPE html><html><body>Sign in</body></html>",
    "is a Flax msgpack file": serialization.msgpack_serialize({"embeddings": {"cls_token": np.ones(3)}}),
}


@pytest.mark.fast
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "moco.pth.tar"])
@pytest.mark.parametrize("sentence", DISGUISED)
def test_other_files_in_place_of_weights_are_named(tmp_path, sentence, name):
    (tmp_path / name).write_bytes(DISGUISED[sentence])
    with pytest.raises(UserError, match=rf"{name} {sentence}[^.]*\.$"):
        read_backbone(find_file(str(tmp_path / name)), config_for(SIZE, 1e-6))


def layer(i, name, shape=(24,)):
    return {f"blocks.{i}.{name}": torch.zeros(shape)}


UNLIKE = {
    r"has SwiGLU MLPs \(as DINOv2-giant\) \(blocks\.0\.mlp\.w12": lambda s: s | layer(0, "mlp.w12.weight"),
    r"queries, keys and values without bias \(no blocks\.0\.attn\.qkv\.bias\)": lambda s: {
        name: tensor for name, tensor in s.items() if not name.endswith("qkv.bias")
    },
    r"normalises queries and keys": lambda s: s | layer(1, "attn.q_norm.weight", 8),
    r"a LayerNorm before its first block": lambda s: s | {"norm_pre.weight": torch.ones(24)},
    r"its last LayerNorm after the pooling": lambda s: s | {"fc_norm.bias": torch.ones(24)},
    r"a distillation token": lambda s: s | {"dist_token": torch.ones(1, 1, 24)},
    r"has no class token": lambda s: {name: tensor for name, tensor in s.items() if name != "cls_token"},
}


@pytest.mark.fast
@pytest.mark.parametrize("sentence", UNLIKE)
def test_what_the_encoder_cannot_represent_is_refused(tmp_path, plain, sentence):
    torch.save(UNLIKE[sentence](plain), tmp_path / "x.pth")
    with pytest.raises(UserError, match=rf"{sentence}.*cannot represent; start from another backbone\.$"):
        read_backbone(tmp_path / "x.pth", config_for(SIZE, 1e-6))


@pytest.mark.fast
def test_deit_is_refused(tmp_path):
    described = DeiTConfig(
        hidden_size=24, num_hidden_layers=1, num_attention_heads=3, intermediate_size=48, image_size=32
    )
    DeiTModel(described).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"has a distillation token .embeddings\.distillation_token"):
        read_backbone(find_file(str(tmp_path)), config_for(SIZE, 1e-12))


@pytest.mark.fast
def test_dinov2_giant_is_refused(tmp_path):
    described = Dinov2Config(hidden_size=24, num_hidden_layers=1, num_attention_heads=3, use_swiglu_ffn=True)
    Dinov2Model(described).save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=r"has SwiGLU MLPs .as DINOv2-giant. .encoder\.layer\.0\.mlp\.weights"
    ):
        read_backbone(find_file(str(tmp_path)), config_for(SIZE, 1e-6))


BESIDE = {
    r"layer_norm_eps=1e-12, but config\.model\.norm_epsilon is 1e-06; set it to 1e-12": (
        {"layer_norm_eps": 1e-12},
        {},
    ),
    r"the activation 'quick_gelu'": ({"hidden_act": "quick_gelu"}, {}),
    r"image_std=\[0\.5, 0\] instead of three": ({}, {"image_mean": [0, 0, 0], "image_std": [0.5, 0]}),
}


@pytest.mark.fast
@pytest.mark.parametrize("sentence", BESIDE)
def test_the_files_beside_the_weights_are_heeded(tmp_path, plain, sentence):
    save_file(plain, tmp_path / "model.safetensors")
    for name, content in zip(("config.json", "preprocessor_config.json"), BESIDE[sentence], strict=True):
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match=sentence):
        read_backbone(tmp_path / "model.safetensors", config_for(SIZE, 1e-6))
    (tmp_path / "config.json").write_bytes(DISGUISED["is a Git-LFS pointer"])
    with pytest.raises(UserError, match=r"config\.json is not a group of settings in JSON"):
        read_backbone(tmp_path / "model.safetensors", config_for(SIZE, 1e-6))


@pytest.mark.fast
def test_the_epsilon_of_timms_names_is_known_without_a_file(tmp_path, plain, capsys):
    save_file(plain, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"timm's ViT.* has layer_norm_eps=1e-06, .* set it to 1e-06"):
        read_backbone(tmp_path / "x.safetensors", config_for(SIZE, 1e-12))
    read_backbone(tmp_path / "x.safetensors", config_for(SIZE, 1e-6))
    assert "x.safetensors says how it scales pixels; ImageNet's" in capsys.readouterr().out


@pytest.mark.fast
def test_more_registers_than_queries_are_refused(tmp_path, plain):
    save_file({**plain, "register_tokens": torch.ones(1, 4, 24)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"has 4 registers, .* config\.model\.tokens is 3; set it to at l"):
        read_backbone(tmp_path / "x.safetensors", config_for(SIZE, 1e-6, 3))
    found = read_backbone(tmp_path / "x.safetensors", config_for(SIZE, 1e-6, 5))
    np.testing.assert_array_equal(found["queries"], np.ones((4, 24)))
