"""Properties of the model that hold for any weights, and the distribution of initial values."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.speed.flops import products
from sparse_vis.models.block import Block, Compute, Sizes, Trunk
from sparse_vis.models.encoder import VisionTransformer, patchify
from sparse_vis.models.factorize import Factorizer, l2_normalize
from sparse_vis.models.stellar import init_params
from sparse_vis.types import Tokens
from tests.golden_data import load_recorded, models_with

NAME = models_with("expected")[0]


@pytest.fixture(scope="module")
def encoded():
    r = load_recorded(NAME)
    pixels = jax.random.uniform(jax.random.key(0), (4, *r.expected["in.image"].shape[1:]))
    return r, jax.jit(lambda p, x: r.model.apply({"params": p}, x, method="encode"))(r.params, pixels)


def factorize(r, tokens):
    return jax.jit(functools.partial(r.model.apply, method="factorize"))({"params": r.params}, tokens)


def test_rows_of_L_sum_to_one_and_Z_is_L_times_S(encoded):
    r, tokens = encoded
    factors = factorize(r, tokens)
    np.testing.assert_allclose(factors.L.sum(-1), 1, atol=1e-6)
    assert (np.asarray(factors.L) >= 0).all()
    product = np.asarray(factors.L, np.float64) @ np.asarray(tokens.S, np.float64)
    np.testing.assert_allclose(factors.Z, product, atol=1e-5)


@pytest.mark.fast
def test_rank_of_Z_is_at_most_r(encoded):
    r, tokens = encoded
    Z = np.asarray(factorize(r, tokens).Z, np.float64)
    values = np.linalg.svd(Z, compute_uv=False)
    tokens_count = tokens.S.shape[1]
    assert Z.shape[1] > tokens_count, "else the rank says nothing"
    assert (values[:, tokens_count:] < 1e-5 * values[:, :1]).all()


@pytest.mark.fast
def test_permuting_S_permutes_L_and_leaves_Z(encoded):
    r, tokens = encoded
    order = jnp.array(np.random.default_rng(0).permutation(tokens.S.shape[1]))
    before = factorize(r, tokens)
    after = factorize(r, Tokens(cls=tokens.cls, S=tokens.S[:, order], U=tokens.U))
    np.testing.assert_allclose(after.Z, before.Z, atol=1e-5)
    np.testing.assert_allclose(after.L, before.L[..., order], atol=1e-6)


def test_seeing_every_patch_is_seeing_the_image(encoded):
    r, _ = encoded
    pixels = r.expected["in.image"]
    count = np.prod(r.model.grid(*pixels.shape[1:3]))
    order = jnp.array(np.random.default_rng(1).permutation(count), jnp.int32)
    visible = jnp.broadcast_to(order, (len(pixels), count))
    encode = jax.jit(lambda p, x, v: r.model.apply({"params": p}, x, v, method="encode"))
    whole, shuffled = encode(r.params, pixels, None), encode(r.params, pixels, visible)
    np.testing.assert_allclose(shuffled.S, whole.S, atol=2e-5)
    np.testing.assert_allclose(shuffled.U, whole.U[:, order], atol=2e-5)


def test_temperature_sharpens_L():
    U, S = (jax.random.normal(jax.random.key(i), (2, n, 8)) for i, n in enumerate((10, 4)))
    params = Factorizer(8, 0.06).init(jax.random.key(2), U, S)
    sharp, soft = (Factorizer(8, t).apply(params, U, S).L.max(-1).mean() for t in (0.01, 1.0))
    assert sharp > soft


@pytest.mark.fast
def test_patchify_keeps_pixels_in_place():
    image = jnp.arange(2 * 5 * 7 * 3, dtype=jnp.float32).reshape(2, 5, 7, 3)
    patches = np.asarray(patchify(image, 2)).reshape(2, 2, 3, 2, 2, 3)
    assert np.array_equal(patches[1, 1, 2, 0, 1], image[1, 2, 5])


@pytest.mark.fast
def test_l2_normalize_has_no_nan_at_zero():
    value, gradient = jax.value_and_grad(lambda x: l2_normalize(x).sum())(jnp.zeros((2, 3)))
    assert value == 0 and np.isfinite(gradient).all()


def test_initial_values_have_the_published_distributions():
    """Means and standard deviations within five standard errors of their own estimate."""
    r = load_recorded(NAME)
    m = r.config.model
    params = jax.tree.map(
        lambda x: np.asarray(x, np.float64).ravel(),
        jax.jit(functools.partial(init_params, r.model))(jax.random.key(0)),
    )
    encoder, block = params["encoder"], params["encoder"]["trunk"]["blocks"]

    def agrees(x, std, kurtosis=3.0):
        assert abs(x.mean()) < 5 * std / np.sqrt(x.size)
        assert abs(x.std() / std - 1) < 5 * np.sqrt((kurtosis - 1) / 4 / x.size)

    for x in (encoder["cls_token"], encoder["position_table"], encoder["patch_embedding"]["kernel"]):
        agrees(x, 0.02)
    for name in ("qkv", "attention_out", "mlp_in", "mlp_out"):
        agrees(block[name]["kernel"], 0.02)
        assert not block[name]["bias"].any()
    assert (block["norm_mlp"]["scale"] == 1).all() and not block["norm_mlp"]["bias"].any()
    agrees(encoder["queries"], m.width**-0.5)
    agrees(params["sparse_head"]["prototypes"], 1.0)
    agrees(params["decoder"]["fourier"], 1.0)
    uniform = {
        m.width: (
            params["factorizer"]["dense_proj"], params["decoder"]["proj"], params["cls_head"]["predictor_in"],
        ),
        m.prototypes.hidden: (params["cls_head"]["predictor_out"],),
    }  # fmt: skip
    for fan_in, layers in uniform.items():
        for layer in layers:
            for x in (layer["kernel"], layer["bias"]):
                agrees(x, fan_in**-0.5 / np.sqrt(3), kurtosis=1.8)
                assert np.abs(x).max() <= fan_in**-0.5
    agrees(params["decoder"]["pixel_kernel"], (3 * m.patch**2) ** -0.5 / np.sqrt(3), kurtosis=1.8)


@pytest.mark.parametrize(
    "settings",
    [{"remat": "products"}, {"remat": "blocks"}, {"unroll": 2}, {"unroll": 2, "remat": "products"}],
)
def test_efficiency_settings_change_nothing(settings):
    plain = VisionTransformer(image_size=8, patch=4, sizes=Sizes(8, 2, 2, 16), queries=2)
    pixels = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3))
    params = jax.jit(plain.init)(jax.random.key(1), pixels)

    def gradient(module):
        return jax.jit(jax.grad(lambda p: (module.apply(p, pixels).S ** 2).sum()))(params)

    ours, theirs = gradient(plain.clone(compute=Compute(**settings))), gradient(plain)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, theirs)


@pytest.mark.parametrize(("only", "tokens"), [("cls", 1), ("S", 3)])
def test_the_last_unrolled_layer_computes_only_the_selected_tokens(only, tokens):
    """Same values and gradients, with so many products less as the formula says."""
    whole = VisionTransformer(image_size=16, patch=4, sizes=Sizes(8, 3, 2, 16, init_std=0.3), queries=2)
    pixels, visible = (
        jax.random.uniform(jax.random.key(0), (2, 16, 16, 3)),
        jnp.array([[0, 5, 9], [3, 2, 15]]),
    )
    params = jax.jit(whole.init)(jax.random.key(1), pixels)
    kept = ("cls", "S")[: 1 + (only == "S")]

    def loss(encoder, asked, params):
        found = encoder.apply(params, pixels, visible, asked)
        missing = [name for name in ("cls", "S", "U") if getattr(found, name) is None]
        assert missing == (["S", "U"][tokens // 3 :] if asked else [])
        return sum((getattr(found, name) ** 3).sum() for name in kept)

    unrolled = [whole.clone(compute=Compute(unroll=3, remat=x)) for x in ("none", "products", "blocks")]
    encoders = ((whole, None), (whole, only), *((encoder, only) for encoder in unrolled))
    losses = [jax.jit(functools.partial(loss, *how)) for how in encoders]
    expected, *others = (jax.jit(jax.value_and_grad(loss))(params) for loss in losses)
    for found in others:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, expected)
    all_of_it, cut, *less = (products(loss.trace(params).jaxpr.jaxpr) for loss in losses)
    others, length = 6 - tokens, 6
    saved = 2 * (2 * others * 8 * (2 * 8 + 2 * 16) + 4 * others * length * 8)
    assert cut == all_of_it and less == 3 * [all_of_it - saved]


def test_unrolled_layers_start_alike_and_from_one_program_of_a_layer():
    """Otherwise a GPU's compiler takes half a minute for twelve copies of the same draws."""
    plain = VisionTransformer(image_size=8, patch=4, sizes=Sizes(8, 3, 2, 16), queries=2)
    inputs = jax.random.key(1), jnp.ones((2, 8, 8, 3))
    starts = [jax.jit(encoder.init)(*inputs) for encoder in (plain, plain.clone(compute=Compute(unroll=3)))]
    jax.tree.map(np.testing.assert_array_equal, *starts)
    draws = [
        str(jax.make_jaxpr(encoder.init)(*inputs))
        for encoder in (plain, plain.clone(compute=Compute(unroll=3)))
    ]
    assert draws[0].count("random_bits") == draws[1].count("random_bits") > 0


def test_keeping_products_saves_memory():
    x = jnp.ones((4, 64, 64))
    plain = Trunk(Sizes(64, 4, 2, 256))
    params = jax.eval_shape(plain.init, jax.random.key(0), x)

    def temporaries(trunk):
        gradient = jax.jit(jax.grad(lambda params: trunk.apply(params, x).sum()))
        return gradient.lower(params).compile().memory_analysis().temp_size_in_bytes

    assert temporaries(plain) > 1.5 * temporaries(plain.clone(compute=Compute(remat="products")))


def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters():
    block = Block(Sizes(8, 1, 2, 16), Compute("bfloat16"))
    x = jnp.ones((1, 3, 8), jnp.bfloat16)
    params = jax.jit(block.init)(jax.random.key(0), x)
    assert block.apply(params, x).dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
