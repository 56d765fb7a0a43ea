"""config.init: MAE backbones, released models, our own checkpoints; what is taken and what stays random."""

from __future__ import annotations

import functools
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from sparse_vis.config.settings import at
from sparse_vis.interop.backbones import read_backbone
from sparse_vis.interop.load import read_model
from sparse_vis.interop.manifest import read_manifest, to_config
from sparse_vis.models.stellar import init_params
from sparse_vis.runtime.errors import UserError
from sparse_vis.train import init
from tests.interop.mae_config import config_of
from tests.interop.timm_vit import TimmViT
from tests.tiny_checkpoint import tiny_config, write_checkpoints

GOLDEN = Path(__file__).parents[1] / "golden"
MAE = GOLDEN / "mae_p16"
ENCODER = {"patch_embedding", "cls_token", "cls_position", "position_table", "trunk"}


def random_start(model, key):
    """Stands for init_params, whose compilation would take longer than all that is tested here."""
    rng = np.random.default_rng(int(jax.random.key_data(key)[-1]))
    shapes = jax.eval_shape(functools.partial(init_params, model), key)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(0, 0.1, x.shape), x.dtype), shapes)


@pytest.fixture(autouse=True)
def no_compilation(monkeypatch):
    monkeypatch.setattr(init, "init_params", random_start)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    write_checkpoints(path, {3: 1})
    return path


def pixel_config():
    config = read_model(GOLDEN, "pixel_p16").config
    config.init, config.init_name = str(GOLDEN), "pixel_p16"
    return config


def assert_equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def differ(ours, theirs):
    return any(np.any(a != b) for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True))


@pytest.mark.parametrize("path", ["model.safetensors", "pytorch_model.bin", ""])
def test_a_backbone_gives_the_encoder_and_nothing_else(path):
    config = config_of(MAE)
    config.model.prototypes.update(count=16, dim=8, hidden=16)
    config.model.decoder.update(width=16, layers=1, heads=2, mlp_dim=32)
    fresh = random_start(init.build_model(config), jax.random.key(config.seed))
    config.init = str(MAE / path)
    params = init.initial_params(config)
    assert jax.tree.structure(params) == jax.tree.structure(fresh)
    backbone = read_backbone(MAE / "model.safetensors", config)
    assert backbone.keys() == ENCODER
    assert_equal({name: params["encoder"][name] for name in ENCODER}, backbone)
    assert_equal(
        {**params, "encoder": params["encoder"]["queries"]}, {**fresh, "encoder": fresh["encoder"]["queries"]}
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}


def test_registers_are_the_first_queries(tmp_path):
    config = config_of(MAE)
    config.model.update(norm_epsilon=1e-6, tokens=5)
    fresh = random_start(init.build_model(config), jax.random.key(config.seed))["encoder"]["queries"]
    vit = TimmViT(64, 16, 48, 2, 4, registers=2)
    torch.nn.init.ones_(vit.reg_token)
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    config.init = str(tmp_path / "vit.pth")
    queries = init.initial_params(config)["encoder"]["queries"]
    np.testing.assert_array_equal(queries, np.concatenate([np.ones((2, 48)), fresh[2:]]))


def test_without_init_the_start_is_random():
    config = tiny_config()
    assert_equal(init.initial_params(config), random_start(init.build_model(config), jax.random.key(0)))


def test_a_released_model_gives_everything():
    assert_equal(init.initial_params(pixel_config()), read_model(GOLDEN, "pixel_p16").params)


def test_a_released_model_at_another_image_size():
    config = pixel_config()
    config.model.image_size = 96
    params, given = init.initial_params(config), read_model(GOLDEN, "pixel_p16").params
    table = torch.from_numpy(given["encoder"]["position_table"]).double().reshape(1, 4, 4, 48)
    resized = functional.interpolate(
        table.permute(0, 3, 1, 2), size=(6, 6), mode="bicubic", align_corners=False
    )
    expected = resized.permute(0, 2, 3, 1).reshape(36, 48)
    np.testing.assert_allclose(params["encoder"]["position_table"], expected, atol=1e-6)
    given["encoder"]["position_table"] = params["encoder"]["position_table"]
    assert_equal(params, given)


def test_our_own_checkpoint_with_its_heads_or_fresh_ones(workdir):
    config = tiny_config()
    config.init = str(workdir)
    saved = read_model(workdir).params
    assert_equal(init.initial_params(config), saved)
    config.init_heads = "fresh"
    params, fresh = init.initial_params(config), random_start(init.build_model(config), jax.random.key(0))
    for name in saved:
        assert_equal(params[name], fresh[name] if name in init.HEADS else saved[name])
    assert differ(fresh["cls_head"], saved["cls_head"])


def test_fresh_heads_may_be_of_another_size(workdir):
    config = tiny_config()
    config.init = str(workdir / "checkpoints" / "3")
    config.model.prototypes.count = 24
    with pytest.raises(UserError, match=r"cls_head/prototypes is \(8, 16\) instead of \(8, 24\)"):
        init.initial_params(config)
    config.init_heads = "fresh"
    assert init.initial_params(config)["cls_head"]["prototypes"].shape == (8, 24)


def set_in(config, name, value):
    with config.unlocked():
        config.update_from_flattened_dict({name: value})


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        (
            "model.width",
            64,
            r"is \(.*32.*\) instead of \(.*64.*\); .* and \d+ more; make config\.model match it",
        ),
        ("model.layers", 3, r"instead of \(3, "),
        ("model.heads", 4, "heads is 2 instead of 4; make"),
        ("model.norm_epsilon", 1e-6, "norm_epsilon is 1e-12 instead of 1e-06; make"),
        ("model.decoder.heads", 4, r"decoder\.heads is 2 instead of 4; make"),
        (
            "model.target",
            "vq",
            "decoder/head/bias is missing; decoder/head/kernel is missing; decoder/pixel_bias is",
        ),
    ],
)
def test_another_architecture_is_refused(workdir, name, value, sentence):
    config = tiny_config()
    config.init = str(workdir)
    set_in(config, name, value)
    with pytest.raises(UserError, match=sentence) as caught:
        init.initial_params(config)
    assert str(caught.value).startswith(f"config.init={workdir} has another architecture: ")
    made = at(tiny_config(), name)  # the flag that mends it, and no other
    assert str(caught.value).endswith(f"make config.model match it: --config.{name}={made}.")


def test_a_backbone_of_another_architecture_is_refused():
    config = tiny_config()
    config.init = str(MAE)
    config.model.heads = 4
    with pytest.raises(
        UserError, match=r"model\.safetensors does not hold this model's tensors: .*misshapen"
    ):
        init.initial_params(config)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"init": "nowhere"}, "nowhere does not exist.*; give a workdir"),
        ({"init": str(GOLDEN)}, "holds several models; give one of the names"),
        ({"init": str(GOLDEN / "config.json")}, r"config\.json has the unknown extension \.json"),
        (
            {"init": str(GOLDEN / "vq_p16.vqgan.safetensors")},
            r"vqgan.* no tensors with known names \(found: decoder\.conv_in.*vit\.emb.*sparse_tokens",
        ),
    ],
)
def test_what_cannot_be_loaded(changes, sentence):
    config = tiny_config()
    config.update(changes)
    with pytest.raises(UserError, match=sentence):
        init.initial_params(config)


def test_a_damaged_backbone(tmp_path):
    shutil.copyfile(MAE / "model.safetensors", tmp_path / "model.safetensors")
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.truncate(3000)
    config = config_of(MAE)
    config.init = str(tmp_path)
    with pytest.raises(UserError, match=r"model\.safetensors cannot be read as a safetensors file"):
        init.initial_params(config)


def test_the_recipe_of_a_manifest_starts_from_its_own_weights():
    """A released file alone, without a name: the manifest beside it is found."""
    config = to_config(read_manifest(GOLDEN / "config.json")["sizes_p14"], "sizes_p14")
    config.init = str(GOLDEN / "sizes_p14.safetensors")
    assert_equal(init.initial_params(config), read_model(GOLDEN, "sizes_p14").params)
