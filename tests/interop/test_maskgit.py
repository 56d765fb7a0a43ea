"""Tokenizer files in both layouts against the arrays recorded from the published implementation."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import serialization
from safetensors.numpy import load_file, save_file
from torch.nn import functional

from sparse_vis.interop.maskgit import load_tokenizer
from sparse_vis.models.vqgan import VQGAN
from sparse_vis.runtime.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden"
WEIGHTS = GOLDEN / "vq_p16.vqgan.safetensors"
CLOSE = {"atol": 1e-5, "rtol": 1e-4}


@pytest.fixture(scope="module")
def recorded():
    return load_file(GOLDEN / "vq_p16.expected.safetensors")


@pytest.fixture(scope="module")
def tensors():
    return load_file(WEIGHTS)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(WEIGHTS)


@pytest.fixture(scope="module")
def encode(tokenizer):
    vqgan, _ = tokenizer
    return jax.jit(lambda p, x: vqgan.apply({"params": p}, x, method="encode"))


def test_sizes_are_inferred(tokenizer):
    assert tokenizer[0] == VQGAN(
        hidden_channels=32,
        channel_mult=(1, 1, 1, 1, 2),
        num_res_blocks=2,
        z_channels=32,
        num_embeddings=128,
        dtype=jnp.float32,
    )


def test_encode_and_codes_match_recording(tokenizer, encode, recorded):
    vqgan, params = tokenizer
    latent = encode(params, recorded["vq.input"])
    np.testing.assert_allclose(latent, recorded["vq.latent"], **CLOSE)
    codes = vqgan.apply({"params": params}, latent, method="codes")
    np.testing.assert_array_equal(codes, recorded["vq.codes"])


def decode_float64(tensors, codes):
    """The decoder again, as torch functions in float64."""
    weights = {name: torch.from_numpy(array).double() for name, array in tensors.items()}

    def conv(x, name):
        weight = weights[f"{name}.weight"]
        return functional.conv2d(x, weight, weights.get(f"{name}.bias"), padding=weight.shape[-1] // 2)

    def norm_silu(x, name):
        scale, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return functional.silu(functional.group_norm(x, 32, scale, bias, 1e-6))

    def block(x, name):
        out = conv(norm_silu(x, f"{name}.norm1"), f"{name}.conv1")
        out = conv(norm_silu(out, f"{name}.norm2"), f"{name}.conv2")
        return out + (conv(out, f"{name}.nin_shortcut") if f"{name}.nin_shortcut.weight" in weights else x)

    grid = torch.from_numpy(codes).reshape(-1, 4, 4)
    x = conv(weights["quantize.embedding.weight"][grid].permute(0, 3, 1, 2), "decoder.conv_in")
    x = block(block(x, "decoder.mid.0"), "decoder.mid.1")
    for level in (4, 3, 2, 1, 0):
        x = block(block(x, f"decoder.up.{level}.block.0"), f"decoder.up.{level}.block.1")
        if level:
            x = conv(functional.interpolate(x, scale_factor=2), f"decoder.up.{level}.upsample_conv")
    return conv(norm_silu(x, "decoder.norm_out"), "decoder.conv_out").permute(0, 2, 3, 1).clamp(0, 1).numpy()


def test_decode_matches_float64_and_recording(tokenizer, recorded, tensors):
    vqgan, params = tokenizer
    codes = jnp.asarray(recorded["vq.codes"], jnp.int32).reshape(2, 4, 4)
    pixels = jax.jit(lambda p, c: vqgan.apply({"params": p}, c, method="decode"))(params, codes)
    np.testing.assert_allclose(pixels, decode_float64(tensors, recorded["vq.codes"]), **CLOSE)
    # The recording itself carries rounding of up to 1.9e-5 in a handful of its 24,576 pixels.
    np.testing.assert_allclose(pixels, recorded["vq.decoded"], atol=3e-5, rtol=1e-4)
    close = np.isclose(pixels, recorded["vq.decoded"], **CLOSE)
    assert close.mean() > 0.999


def test_every_tensor_of_the_file_is_a_parameter(tokenizer, tensors):
    leaves = map(np.asarray, jax.tree.leaves(tokenizer[1]))
    arrays = [leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf for leaf in leaves]
    assert sorted(x.tobytes() for x in arrays) == sorted(x.tobytes() for x in tensors.values())


def test_torch_file_gives_the_same_parameters(tmp_path, tokenizer, tensors):
    torch.save({name: torch.from_numpy(array) for name, array in tensors.items()}, tmp_path / "vq.bin")
    vqgan, params = load_tokenizer(tmp_path / "vq.bin")
    assert vqgan == tokenizer[0]
    jax.tree.map(np.testing.assert_array_equal, params, tokenizer[1])


def original_flax(tensors):
    """The golden tensors under the names of the MaskGIT release, spelled out as its compact modules count."""
    res = {"norm1": "GroupNorm_0", "conv1": "Conv_0", "norm2": "GroupNorm_1", "conv2": "Conv_1"}
    res["nin_shortcut"] = "Conv_2"
    modules = {
        "encoder.conv_in": "encoder/Conv_0",
        "encoder.conv_out": "encoder/Conv_1",
        "encoder.norm_out": "encoder/GroupNorm_0",
        "decoder.conv_in": "decoder/Conv_0",
        "decoder.up.4.upsample_conv": "decoder/Conv_1",
        "decoder.up.3.upsample_conv": "decoder/Conv_2",
        "decoder.up.2.upsample_conv": "decoder/Conv_3",
        "decoder.up.1.upsample_conv": "decoder/Conv_4",
        "decoder.conv_out": "decoder/Conv_5",
        "decoder.norm_out": "decoder/GroupNorm_0",
    }
    blocks = {f"encoder.down.{i // 2}.block.{i % 2}": f"encoder/ResBlock_{i}" for i in range(10)}
    blocks |= {"encoder.mid.0": "encoder/ResBlock_10", "encoder.mid.1": "encoder/ResBlock_11"}
    blocks |= {"decoder.mid.0": "decoder/ResBlock_0", "decoder.mid.1": "decoder/ResBlock_1"}
    blocks |= {f"decoder.up.{4 - i // 2}.block.{i % 2}": f"decoder/ResBlock_{2 + i}" for i in range(10)}
    for ours, theirs in blocks.items():
        modules |= {f"{ours}.{name}": f"{theirs}/{inner}" for name, inner in res.items()}
    tree = {"params": {"quantizer": {"codebook": tensors["quantize.embedding.weight"]}}}
    for name, array in tensors.items():
        module, leaf = name.rsplit(".", 1)
        if module not in modules:
            continue
        if leaf == "weight":
            leaf, array = ("kernel", array.transpose(2, 3, 1, 0)) if array.ndim == 4 else ("scale", array)
        node = tree["params"]
        for part in modules[module].split("/"):
            node = node.setdefault(part, {})
        node[leaf] = array
    return tree


def test_msgpack_of_the_maskgit_release(tmp_path, tokenizer, encode, tensors, recorded):
    path = tmp_path / "tokenizer_imagenet256_checkpoint"
    tree = original_flax(tensors)
    assert len(jax.tree.leaves(tree)) == len(tensors)
    path.write_bytes(serialization.msgpack_serialize(tree))
    vqgan, params = load_tokenizer(path)
    assert vqgan == tokenizer[0]
    codes = vqgan.apply({"params": params}, encode(params, recorded["vq.input"]), method="codes")
    np.testing.assert_array_equal(codes, recorded["vq.codes"])
    jax.tree.map(np.testing.assert_array_equal, params, tokenizer[1])  # the decoder too


def test_faults_of_a_msgpack_carry_its_own_names(tmp_path, tensors):
    tree = original_flax(tensors)
    del tree["params"]["decoder"]["ResBlock_3"]["Conv_1"]
    (tmp_path / "x.msgpack").write_bytes(serialization.msgpack_serialize(tree))
    with pytest.raises(UserError, match=r"1 missing \(params/decoder/ResBlock_3/Conv_1/kernel\);"):
        load_tokenizer(tmp_path / "x.msgpack")


def test_missing_misshapen_and_unexpected_tensors_are_named(tmp_path, tensors):
    broken = dict(tensors)
    del broken["decoder.mid.0.norm1.bias"]
    broken["encoder.mid.1.conv2.weight"] = np.zeros((64, 64, 1, 1), np.float32)
    broken["loss.discriminator.weight"] = np.zeros(3, np.float32)
    save_file(broken, tmp_path / "broken.safetensors")
    with pytest.raises(UserError) as caught:
        load_tokenizer(tmp_path / "broken.safetensors")
    message = str(caught.value)
    assert "broken.safetensors" in message
    assert "1 missing (decoder.mid.0.norm1.bias)" in message
    assert "1 misshapen (encoder.mid.1.conv2.weight is (64, 64, 1, 1) instead of (64, 64, 3, 3))" in message
    assert "1 unexpected (loss.discriminator.weight)" in message


@pytest.mark.parametrize("name", ["encoder.conv_in.weight", "quantize.embedding.weight"])
def test_without_a_telling_tensor_the_file_is_refused(tmp_path, tensors, name):
    save_file({n: a for n, a in tensors.items() if n != name}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=rf"x.safetensors is not a MaskGIT-VQGAN \(it lacks {name}\)"):
        load_tokenizer(tmp_path / "x.safetensors")


def test_another_model_is_refused():
    with pytest.raises(UserError, match=r"model.safetensors is not a MaskGIT-VQGAN"):
        load_tokenizer(GOLDEN / "mae_p16" / "model.safetensors")


def test_half_precision_file_gives_float32_parameters(tmp_path, tensors):
    save_file({n: a.astype(np.float16) for n, a in tensors.items()}, tmp_path / "half.safetensors")
    _, params = load_tokenizer(tmp_path / "half.safetensors")
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    codebook = tensors["quantize.embedding.weight"].astype(np.float16)
    np.testing.assert_array_equal(params["codebook"], codebook)


def test_bfloat16_tokenizer_keeps_most_codes(recorded):
    def codes(dtype):
        vqgan, params = load_tokenizer(WEIGHTS, dtype=dtype)
        assert vqgan.dtype == dtype
        return jax.jit(
            lambda x: vqgan.apply({"params": params}, x, method=lambda m, x: m.codes(m.encode(x)))
        )(recorded["vq.input"])

    assert np.mean(np.asarray(codes(jnp.bfloat16) == codes(jnp.float32))) >= 0.9


@pytest.mark.parametrize(
    ("name", "shape", "sentence"),
    [
        ("encoder.down.1000000000.block.0.conv1.weight", (3,), r"it lacks encoder\.down\.5"),
        ("encoder.mid.1000000000.conv1.weight", (3,), r"unexpected|missing"),
        (
            "encoder.conv_in.weight",
            (0, 3, 3, 3),
            r"is not a MaskGIT-VQGAN: 0 channels, then \[32, 32, 32, 32, 64\]",
        ),
        ("encoder.conv_in.weight", (7, 3, 3, 3), "is not a MaskGIT-VQGAN: 7 channels"),
        ("encoder.down.1.block.0.conv2.weight", (33, 32, 3, 3), r"32 channels, then \[32, 33, 32, 32, 64\]"),
        ("quantize.embedding.weight", (0, 32), "0 codes of 32"),
    ],
)
def test_sizes_that_no_tokenizer_has_are_refused_at_once(tmp_path, tensors, name, shape, sentence):
    save_file({**tensors, name: np.zeros(shape, np.float32)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=sentence):
        load_tokenizer(tmp_path / "x.safetensors")
