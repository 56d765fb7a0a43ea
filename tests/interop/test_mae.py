"""MAE backbones: both file forms, folders and addresses, other image sizes, other architectures."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub
import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch.nn import functional

from sparse_vis.interop.backbones import find_file, read_backbone
from sparse_vis.interop.load import read_model
from sparse_vis.runtime import network
from sparse_vis.runtime.errors import UserError
from tests.interop.mae_config import config_of

MAE = Path(__file__).parents[1] / "golden" / "mae_p16"
WEIGHTS = MAE / "model.safetensors"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setattr(network, "unreachable", lambda: "")


@pytest.fixture
def config():
    return config_of(MAE)


@pytest.fixture(scope="module")
def tensors():
    return load_file(WEIGHTS)


def test_values_and_layouts(config, tensors):
    tree = read_backbone(WEIGHTS, config)
    assert tree.keys() == {"patch_embedding", "cls_token", "cls_position", "position_table", "trunk"}
    position = tensors["vit.embeddings.position_embeddings"][0]
    np.testing.assert_array_equal(tree["cls_position"], position[0])
    np.testing.assert_array_equal(tree["position_table"], position[1:])
    value = tensors["vit.encoder.layer.1.attention.attention.value.weight"]
    np.testing.assert_array_equal(tree["trunk"]["blocks"]["qkv"]["kernel"][1, :, 96:], value.T)
    np.testing.assert_array_equal(tree["trunk"]["norm"]["scale"], tensors["vit.layernorm.weight"])


def test_torch_and_safetensors_files_are_equal(config):
    trees = (read_backbone(MAE / name, config) for name in ("model.safetensors", "pytorch_model.bin"))
    jax.tree.map(np.testing.assert_array_equal, *trees)


@pytest.mark.parametrize("size", [32, 96, 224])
def test_another_image_size_resizes_the_table_as_torch_does(config, tensors, size):
    config.model.image_size = size
    table = torch.from_numpy(tensors["vit.embeddings.position_embeddings"][0, 1:]).double()
    grid = table.reshape(1, 4, 4, 48).permute(0, 3, 1, 2)
    resized = functional.interpolate(grid, size=(size // 16,) * 2, mode="bicubic", align_corners=False)
    expected = resized.permute(0, 2, 3, 1).reshape(-1, 48).numpy()
    ours = read_backbone(WEIGHTS, config)["position_table"]
    assert ours.shape == ((size // 16) ** 2, 48)
    np.testing.assert_allclose(ours, expected, atol=5e-6)


def test_files_folders_and_names():
    assert find_file(str(WEIGHTS)) == WEIGHTS == find_file(str(MAE))
    assert find_file(str(MAE.parent)) is None  # a release folder
    assert find_file("hf://microsoft/STELLAR/stellar-b16") is None


def test_a_folder_with_the_torch_file_alone(tmp_path):
    shutil.copyfile(MAE / "pytorch_model.bin", tmp_path / "pytorch_model.bin")
    assert find_file(str(tmp_path)) == tmp_path / "pytorch_model.bin"


def test_a_folder_with_other_files_says_which(tmp_path):
    assert find_file(str(tmp_path)) is None  # may be a workdir
    (tmp_path / "mae_pretrain_vit_base.pth").touch()
    with pytest.raises(
        UserError, match=r"holds none of .* but mae_pre\S+; give .*, e\.g\. \S+/mae_pretrain_vit_b"
    ):
        find_file(str(tmp_path))
    for name in ("tf_model.h5", "flax_model.msgpack"):
        (tmp_path / "mae_pretrain_vit_base.pth").rename(tmp_path / name)
        with pytest.raises(UserError, match=rf"only weights of Flax or TensorFlow \({name}\); give the"):
            find_file(str(tmp_path))
        (tmp_path / name).rename(tmp_path / "mae_pretrain_vit_base.pth")
    (tmp_path / "mae_pretrain_vit_base.pth").unlink()
    shutil.copyfile(MAE / "config.json", tmp_path / "config.json")
    with pytest.raises(UserError, match=r"but config\.json; give a weight file itself\.$"):
        find_file(str(tmp_path))


def test_a_backbone_is_no_model_to_load(tmp_path):
    with pytest.raises(
        UserError, match=r"config\.json belongs to a vit_mae of transformers.*--config\.init=FOLDER"
    ):
        read_model(MAE)
    shutil.copyfile(WEIGHTS, tmp_path / "x.safetensors")
    with pytest.raises(
        UserError, match=r"contains no STELLAR model: sparse_tokens is missing, found: decoder\."
    ):
        read_model(tmp_path / "x.safetensors")


@pytest.mark.parametrize("there", [("model.safetensors", "pytorch_model.bin"), ("pytorch_model.bin",)])
def test_hub_repository_with_either_file(monkeypatch, there):
    def download(address, filename, **_):
        assert address == "facebook/vit-mae-base"
        if filename not in there:
            raise FileNotFoundError(filename)
        return str(MAE / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert find_file("hf://facebook/vit-mae-base") == MAE / there[0]


def test_hub_repository_with_neither_file(monkeypatch):
    def download(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(
        UserError, match=r"^model\.safetensors of hf://facebook/vit-mae-base .*no route\); without"
    ):
        find_file("hf://facebook/vit-mae-base")


def test_another_models_file_is_no_backbone(config):
    assert read_backbone(MAE.parent / "pixel_p16.safetensors", config) is None


def test_another_architecture_is_refused(config):
    config.model.layers = 3
    with pytest.raises(UserError, match=r"16 missing \(vit\.encoder\.layer\.2\."):
        read_backbone(WEIGHTS, config)
    config.model.layers = 1
    with pytest.raises(UserError, match=r"16 unexpected \(vit\.encoder\.layer\.1\."):
        read_backbone(WEIGHTS, config)


def test_another_number_of_heads_is_refused(config):
    config.model.heads = 2
    with pytest.raises(UserError, match=r"has num_attention_heads=4, but config\.model\.heads is 2; set it"):
        read_backbone(WEIGHTS, config)


def test_a_table_that_is_no_square_grid_is_refused(tmp_path, config, tensors):
    broken = {**tensors, "vit.embeddings.position_embeddings": np.zeros((1, 16, 48), np.float32)}
    save_file(broken, tmp_path / "mae.safetensors")
    with pytest.raises(UserError, match=r"position_embeddings is \(1, 16, 48\) instead of \(1, 17, 48\)"):
        read_backbone(tmp_path / "mae.safetensors", config)


def test_below_the_backbones_prefix_the_pooler_may_be_there_and_nothing_else(tmp_path, config, tensors):
    pooler = {f"{x}.weight": np.zeros((48, 48), np.float32) for x in ("vit.pooler.dense", "classifier")}
    save_file({**tensors, **pooler}, tmp_path / "mae.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit_mae"}))  # names no heads
    expected = read_backbone(WEIGHTS, config)
    jax.tree.map(np.testing.assert_array_equal, read_backbone(tmp_path / "mae.safetensors", config), expected)
    save_file({**tensors, "vit.neck.weight": np.zeros(3, np.float32)}, tmp_path / "mae.safetensors")
    with pytest.raises(UserError, match=r"1 unexpected \(vit\.neck\.weight\)"):
        read_backbone(tmp_path / "mae.safetensors", config)
