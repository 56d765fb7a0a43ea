"""Encoders by name: recorded features of an MAE and of a released model, and what each can give."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from sparse_vis.data.scenes import SceneSource, SceneSpec
from sparse_vis.evals.dataset import Part
from sparse_vis.evals.encoders import beside_encoder, own_encoder
from sparse_vis.evals.features import encode
from sparse_vis.interop.load import read_model
from sparse_vis.models.stellar import init_params
from sparse_vis.runtime.errors import UserError
from tests.interop.mae_config import config_of

GOLDEN = Path(__file__).parents[1] / "golden"
MAE = GOLDEN / "mae_p16"


def released(name):
    config = read_model(GOLDEN, name).config
    config.init, config.init_name = str(GOLDEN), name
    return config


def train(size=64):
    return Part(SceneSource(SceneSpec(size=size), split="train", seed=0), np.arange(4), size, size, 1)


def test_an_mae_backbone_is_encoded_without_queries(tmp_path):
    config, recorded = config_of(MAE), load_file(MAE / "expected.safetensors")
    config.init = str(MAE)
    encoder, weights = own_encoder(config, tmp_path)
    assert weights is None and encoder.gives == ("cls", "dense") and encoder.name == "trained"
    images = recorded["in.image"]
    found = encode(encoder, images, ("cls", "dense", "sparse"), len(images))
    np.testing.assert_allclose(
        found["cls"].reshape(recorded["out.cls"].shape), recorded["out.cls"], atol=2e-4
    )
    np.testing.assert_allclose(found["dense"], recorded["out.patches"], atol=2e-4)
    with pytest.raises(UserError, match="'untrained' cannot be used with a backbone"):
        beside_encoder("untrained", config, weights, train())


def test_a_released_model_gives_its_recorded_features(tmp_path):
    encoder, weights = own_encoder(released("vq_p16"), tmp_path)
    recorded = load_file(GOLDEN / "vq_p16.expected.safetensors")
    images = recorded["in.image"]
    found = encode(encoder, images, ("sparse", "dense", "cls", "spatial", "reconstruction"), len(images))
    for name in ("sparse", "dense", "cls", "spatial"):
        np.testing.assert_allclose(found[name], recorded[f"encode.{name}"], atol=2e-4)
    again = encoder.decode(found["sparse"], found["spatial"])
    np.testing.assert_allclose(again, found["reconstruction"], atol=1e-4)
    fresh = beside_encoder("untrained", released("vq_p16"), weights, train())
    assert "reconstruction" in fresh.gives and fresh.about["crc32"] != encoder.about["crc32"]


def test_released_weights_are_compared_with_those_from_which_the_configuration_starts(tmp_path):
    config = released("vq_p16")
    config.model.init_std = 0.1
    model, params = own_encoder(config, tmp_path)[1]
    start = init_params(model.clone(tokenizer=None), jax.random.key(0))["encoder"]["trunk"]["blocks"]
    assert start["qkv"]["kernel"].std() == pytest.approx(0.1, rel=0.1)
    assert params["encoder"]["trunk"]["blocks"]["qkv"]["kernel"].std() != pytest.approx(0.1, rel=0.1)


def test_a_vq_model_without_its_tokenizer_says_so(tmp_path):
    for name in ("config.json", "vq_p16.safetensors"):
        shutil.copyfile(GOLDEN / name, tmp_path / name)
    encoder = beside_encoder(str(tmp_path / "vq_p16.safetensors"), released("vq_p16"), None, train())
    assert "reconstruction" not in encoder.gives and encoder.decode is None
    assert "give --config.model.tokenizer.path=FILE" in encoder.absent["reconstruction"]


def test_patches_that_do_not_fill_the_images_are_refused():
    config = released("vq_p16")
    config.model.image_size = 56
    with pytest.raises(UserError, match=r"patches of 16 px, which do not fill images of .*image_size=56"):
        beside_encoder(str(GOLDEN / "vq_p16.safetensors"), config, None, train(56))
