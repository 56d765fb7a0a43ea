"""The reconstruction probe: its update against torch, its targets against the model's own, what it learns."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from sparse_vis.build import build_model
from sparse_vis.evals.features import as_unit, patches_of
from sparse_vis.evals.maps.published_images import adamw
from sparse_vis.evals.pixels import decoder_probe as dp
from sparse_vis.evals.pixels.psnr_ssim import psnr
from sparse_vis.interop.load import read_model
from sparse_vis.interop.maskgit import load_tokenizer
from sparse_vis.runtime.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden"
TOKENIZER = GOLDEN / "vq_p16.vqgan.safetensors"
SMALL = dict(width=32, layers=1, heads=2, mlp_dim=64, dtype="float32")


def blocks(count, seed, size=16):
    """Images of four flat squares."""
    colours = np.random.default_rng(seed).integers(0, 256, (count, 2, 2, 3), dtype=np.uint8)
    return colours.repeat(size // 2, axis=1).repeat(size // 2, axis=2)


def test_pixels_are_learnt_from_features_that_hold_them():
    train, test = blocks(64, 0), blocks(16, 1)
    probe = dp.DecoderProbe(
        (4, 4), 16, dp.DecoderProtocol(learning_rate=3e-3, epochs=40, **SMALL), None, seed=0
    )
    features = {id(x): patches_of(x, 4) for x in (train, test)}

    def epoch(number):
        order = np.random.default_rng(number).permutation(64)
        return [(features[id(train)][rows], train[rows]) for rows in (order[:32], order[32:])]

    losses = dp.fit(probe, epoch)
    found = probe.reconstruct(features[id(test)])
    assert found.shape == (16, 16, 16, 3) and found.min() >= 0 and found.max() <= 1
    assert len(losses) == 40 and losses[-1] < 0.2 * losses[0]
    constant = -10 * np.log10(as_unit(test).var(axis=(1, 2)).mean(axis=-1))  # each image's mean colour
    assert psnr(found, as_unit(test)).mean() > constant.mean() + 5
    blind = probe.reconstruct(np.zeros_like(features[id(test)]))
    assert psnr(blind, as_unit(test)).mean() < constant.mean()


def test_the_update_is_clipped_adamw_and_leaves_the_position_code():
    # So small a norm that every gradient exceeds it.
    images, protocol = (
        blocks(4, 2),
        dp.DecoderProtocol(learning_rate=0.01, weight_decay=0.1, clip=1e-3, **SMALL),
    )
    Z, true = jnp.asarray(patches_of(images, 4)), jnp.asarray(as_unit(images))
    probe = dp.DecoderProbe((4, 4), 16, protocol, None, seed=3)
    probe.learn(Z, images)  # makes the decoder
    params = first = jax.jit(probe.decoder.init, static_argnums=2)(jax.random.key(3), Z, (4, 4))["params"]
    state = adamw(protocol).init(params)
    ours = torch.nn.Parameter(torch.tensor(np.array(params["pixel_kernel"])))
    theirs = torch.optim.AdamW([ours], lr=0.01, weight_decay=0.1)
    loss = jax.jit(jax.grad(lambda p: jnp.mean((probe.decoder.apply({"params": p}, Z, (4, 4)) - true) ** 2)))
    for _ in range(3):
        gradient = loss(params)
        norm = np.sqrt(sum(np.square(g, dtype=np.float64).sum() for g in jax.tree.leaves(gradient)))
        assert norm > 2 * protocol.clip
        ours.grad = torch.tensor(np.array(gradient["pixel_kernel"]) * np.float32(protocol.clip / norm))
        theirs.step()
        params, state, _ = dp._update(params, state, Z, true, probe.decoder, (4, 4), protocol)
        np.testing.assert_allclose(params["pixel_kernel"], ours.detach().numpy(), atol=1e-6)
    np.testing.assert_array_equal(params["fourier"], first["fourier"])


@pytest.mark.parametrize("size,grid", [(64, (4, 4)), (56, (4, 4))])
def test_code_targets_are_those_of_training(size, grid):
    """At patch 16 as they are, at patch 14 (4 patches of 56 px) of the image resized to 64 px."""
    module, params = load_tokenizer(TOKENIZER)
    images = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    config = read_model(GOLDEN, "vq_p16").config
    config.model.update(image_size=size, patch=size // 4)
    model = build_model(config).clone(tokenizer=module)
    codes = jax.jit(functools.partial(model.apply, method="codes"))
    expected = codes({"params": {"tokenizer": params}}, jnp.asarray(as_unit(images)))
    np.testing.assert_array_equal(dp._target(params, as_unit(images), module, grid), expected)


def test_codes_are_learnt_and_decoded():
    module, params = load_tokenizer(TOKENIZER)
    images = blocks(4, 5, size=64)
    codes = np.asarray(dp._target(params, as_unit(images), module, (4, 4)))
    protocol = dp.DecoderProtocol(learning_rate=1e-2, epochs=60, **SMALL)
    probe = dp.DecoderProbe((4, 4), 64, protocol, (module, params), seed=0)
    Z = np.eye(128, dtype=np.float32)[codes]  # features that say which code it is
    losses = dp.fit(probe, lambda number: [(Z, images)])
    assert losses[0] > 3 and losses[-1] < 0.1
    decode = jax.jit(functools.partial(module.apply, method="decode"))
    expected = decode({"params": params}, jnp.asarray(codes.reshape(4, 4, 4)))
    np.testing.assert_allclose(probe.reconstruct(Z), expected, atol=1e-3)


@pytest.mark.fast
def test_bad_input_is_named():
    probe = dp.DecoderProbe((4, 4), 16, dp.DecoderProtocol(epochs=1, **SMALL), None, seed=0)
    with pytest.raises(UserError, match="no training batches"):
        dp.fit(probe, lambda number: [])
    with pytest.raises(UserError, match="image size 18 is not a multiple of the 4 patches"):
        dp.DecoderProbe((4, 4), 18, dp.DecoderProtocol(), None, seed=0)
