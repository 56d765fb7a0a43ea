"""Training against the codes of a frozen tokenizer, through the same run as main.py's."""

from __future__ import annotations

import pathlib

import jax
import numpy as np
import pytest

from sparse_vis.build import build_model
from sparse_vis.commands.run import run
from sparse_vis.interop.maskgit import load_tokenizer
from sparse_vis.ops.resize import resize_bicubic
from sparse_vis.runtime.errors import UserError
from sparse_vis.train.stop import StopSignal
from tests.train.tiny_config import get_config

TOKENIZER = pathlib.Path(__file__).parents[1] / "golden" / "vq_p16.vqgan.safetensors"


def vq_config(patch: int, image: int):
    config = get_config()
    config.model.update(image_size=image, patch=patch, target="vq")
    vqgan, _ = load_tokenizer(TOKENIZER)
    config.model.tokenizer.update(path=str(TOKENIZER), codes=vqgan.num_embeddings)
    config.views.local_size = patch
    config.loss.reconstruction = 0.05
    config.data.scenes.size = config.data.canvas = image
    config.train.update(steps=3, log_every=1, save_every=3)
    return config


def test_at_another_patch_size_codes_are_those_of_the_resized_image():
    """Patch 14: 28 px are two patches, hence two codes a side, those of the image at 32 px."""
    config = vq_config(14, 28)
    vqgan, weights = load_tokenizer(TOKENIZER)
    model = build_model(config).clone(tokenizer=vqgan)
    pixels = jax.random.uniform(jax.random.key(0), (2, 28, 28, 3))
    ours = jax.jit(lambda x: model.apply({"params": {"tokenizer": weights}}, x, method="codes"))(pixels)
    larger = resize_bicubic(pixels, (32, 32))
    direct = jax.jit(lambda x: vqgan.apply({"params": weights}, x, method=lambda m, x: m.codes(m.encode(x))))(
        larger
    )
    assert ours.shape == (2, 4)
    assert np.array_equal(ours, direct)


def test_the_vq_target_without_a_tokenizer_is_one_sentence(tmp_path):
    config = vq_config(16, 32)
    config.model.tokenizer.path = ""
    with pytest.raises(UserError, match=r"config\.model\.tokenizer\.path=FILE"):
        run(config, tmp_path, "train", StopSignal())
