"""The MaskGIT-VQGAN: recorded arrays are in tests/interop/test_maskgit.py; here, closed forms and shapes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from sparse_vis.models.vqgan import VQGAN, ResBlock, _norm_silu
from sparse_vis.runtime.errors import UserError

SMALL = VQGAN(hidden_channels=32, channel_mult=(1, 2), num_res_blocks=1, z_channels=8, num_embeddings=16)


class NormSilu(nn.Module):
    """The network's normalisation by itself."""

    dtype: object

    @nn.compact
    def __call__(self, x):
        return _norm_silu(x, self.dtype, "norm")


def random_params(module, x):
    """Normal kernels of variance 1 / fan-in and scales of one; compiles nothing, unlike init."""
    rng = np.random.default_rng(0)
    tree = jax.eval_shape(module.init, jax.random.key(0), x)["params"]

    def draw(leaf):
        if len(leaf.shape) == 1:
            return np.ones(leaf.shape, np.float32)
        return rng.normal(scale=np.prod(leaf.shape[:-1]) ** -0.5, size=leaf.shape).astype(np.float32)

    return jax.tree.map(lambda leaf: jnp.asarray(draw(leaf)), tree)


@pytest.fixture(scope="module")
def params():
    return random_params(SMALL, jnp.zeros((1, 8, 8, 3)))


def run(vqgan, params, x, method):
    return jax.jit(lambda p, x: vqgan.apply({"params": p}, x, method=method))(params, x)


def test_released_sizes_give_256_codes():
    vqgan = VQGAN(128, (1, 1, 2, 2, 4), 2, 256, 1024)
    pixels = jax.ShapeDtypeStruct((3, 256, 256, 3), jnp.float32)
    variables = jax.eval_shape(vqgan.init, jax.random.key(0), pixels)
    latent = jax.eval_shape(lambda v, x: vqgan.apply(v, x, method="encode"), variables, pixels)
    codes = jax.eval_shape(lambda v, z: vqgan.apply(v, z, method="codes"), variables, latent)
    grid = jax.ShapeDtypeStruct((3, 16, 16), jnp.int32)
    out = jax.eval_shape(lambda v, c: vqgan.apply(v, c, method="decode"), variables, grid)
    assert latent.shape == (3, 16, 16, 256)
    assert (codes.shape, codes.dtype) == ((3, 256), jnp.int32)
    assert out.shape == (3, 256, 256, 3)


@pytest.mark.parametrize("seed", range(3))
def test_codes_are_the_nearest_vectors(params, seed):
    rng = np.random.default_rng(seed)
    latent = rng.normal(size=(2, 3, 5, 8)).astype(np.float32)
    codebook = np.asarray(params["codebook"], np.float64)
    distance = ((latent.reshape(2, 15, 1, 8).astype(np.float64) - codebook) ** 2).sum(-1)
    codes = run(SMALL, params, latent, "codes")
    assert codes.dtype == jnp.int32
    np.testing.assert_array_equal(codes, distance.argmin(-1))


def test_codes_of_codebook_vectors_are_their_row_major_indices(params):
    grid = np.random.default_rng(0).integers(0, 16, size=(2, 3, 4))
    latent = params["codebook"][grid]
    np.testing.assert_array_equal(run(SMALL, params, latent, "codes"), grid.reshape(2, 12))


def test_shortcut_acts_on_the_output_of_the_second_convolution():
    block = ResBlock(channels=64, dtype=jnp.float32)
    x = jax.random.normal(jax.random.key(1), (1, 4, 4, 32))
    params = random_params(block, x)
    kernel = params["nin_shortcut"]["kernel"]
    assert kernel.shape == (1, 1, 64, 64)
    out = jax.jit(lambda k: block.apply({"params": params | {"nin_shortcut": {"kernel": k}}}, x))
    second = np.asarray(out(jnp.zeros_like(kernel)))  # without its shortcut, the block returns conv2
    np.testing.assert_allclose(out(kernel), second + second @ np.asarray(kernel)[0, 0], rtol=1e-5, atol=1e-5)


def test_group_norm_statistics_stay_float32_in_bfloat16():
    rng = np.random.default_rng(0)
    x = jnp.asarray(100 + rng.normal(size=(1, 8, 8, 64)), jnp.bfloat16)
    norm = NormSilu(jnp.bfloat16)
    plain = {"params": {"norm": {"scale": jnp.ones(64), "bias": jnp.zeros(64)}}}
    got = np.asarray(jax.jit(norm.apply)(plain, x), np.float64)
    groups = np.asarray(x, np.float64).reshape(1, 64, 32, 2)
    centred = groups - groups.mean((1, 3), keepdims=True)
    y = (centred / np.sqrt(groups.var((1, 3), keepdims=True) + 1e-6)).reshape(got.shape)
    np.testing.assert_allclose(got, y / (1 + np.exp(-y)), atol=0.03)


def test_decode_clips_float32_and_bfloat16(params):
    loud = jax.tree.map(lambda p: 20 * p, params)
    codes = jnp.arange(16).reshape(1, 4, 4)
    for dtype in (jnp.float32, jnp.bfloat16):
        pixels = run(SMALL.clone(dtype=dtype), loud, codes, "decode")
        assert (pixels.shape, pixels.dtype) == ((1, 8, 8, 3), jnp.float32)
        assert (float(pixels.min()), float(pixels.max())) == (0.0, 1.0)


def test_remainder_of_odd_sizes_is_dropped(params):
    pixels = jax.random.uniform(jax.random.key(0), (1, 9, 11, 3))
    latent = run(SMALL, params, pixels, "encode")
    assert (latent.shape, latent.dtype) == ((1, 4, 5, 8), jnp.float32)


def test_too_small_images_and_bad_widths(params):
    with pytest.raises(UserError, match=r"images of 1x8; give at least 2x2 pixels"):
        run(SMALL, params, jnp.zeros((1, 1, 8, 3)), "encode")
    with pytest.raises(UserError, match=r"hidden_channels is 48; use a multiple of 32"):
        SMALL.clone(hidden_channels=48).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
