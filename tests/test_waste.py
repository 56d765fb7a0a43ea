"""What a step must not do twice or keep, read off the traced program at the published size."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from sparse_vis.build import build_loss, build_model
from sparse_vis.config.defaults import default_config
from sparse_vis.losses.clustering import matched_targets, prototype_cross_entropy
from sparse_vis.models.stellar import init_params
from sparse_vis.models.vqgan import VQGAN
from sparse_vis.ops.prototypes import expected_prototype
from sparse_vis.train.recipe import build_recipe
from sparse_vis.types import Batch, Views
from sparse_vis.views.make import make_views
from tests.step_loss import loss_fn

IMAGES = 3  # so that no axis of rows is as long as another axis
K, DIM, CHUNK = 16384, 256, default_config().efficiency.prototype_chunk
array = jax.ShapeDtypeStruct


def equations(jaxpr):
    """Every equation of a program and of the programs within it."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns")):
            if hasattr(inner := getattr(value, "jaxpr", value), "eqns"):
                yield from equations(inner)


def shapes(found, primitive):
    """Shapes of the operands of every equation of one kind."""
    return [tuple(v.aval.shape for v in e.invars) for e in found if e.primitive.name == primitive]


@functools.cache
def published(target="pixel", unroll=1):
    """Loss of the published B/16 step with 3 images by its parameters, all abstract; and the parameters."""
    config = default_config()
    config.model.target, config.efficiency.unroll = target, unroll
    model, tokenizer = build_model(config), None
    params = jax.eval_shape(functools.partial(init_params, model), jax.random.key(0))
    if target == "vq":
        module = VQGAN(128, (1, 1, 2, 2, 4), 2, 256, config.model.tokenizer.codes)
        model = model.clone(tokenizer=module)
        tokenizer = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    views = Views(
        array((IMAGES, 224, 224, 3), jnp.float32), array((IMAGES, 8, 224, 224, 3), jnp.float32),
        array((IMAGES, 8, 39), jnp.int32), array((IMAGES, 8, 96, 96, 3), jnp.float32),
    )  # fmt: skip

    def loss(params, views, tokenizer):
        total, _ = loss_fn(params, model, build_loss(config), views, None, tokenizer)
        return total

    return loss, params, views, tokenizer


@functools.cache
def gradient_program(target="pixel", unroll=1):
    loss, *arguments = published(target, unroll)
    return list(equations(jax.make_jaxpr(jax.grad(loss))(*arguments).jaxpr))


def test_only_the_images_own_rows_meet_all_prototypes_at_once():
    """Sinkhorn asks for the scores of S and CLS of the images; nothing else is as wide as K, views least."""
    known = {(DIM, K), (1, K), (K,), (1,), (), (IMAGES, K), (IMAGES * 16, K)}
    wide = {v.aval.shape for e in gradient_program() for v in e.outvars if K in getattr(v.aval, "shape", ())}
    assert (IMAGES * 16, K) in wide and wide - known == set(), wide - known


def test_no_assignment_is_kept_for_the_backward_pass():
    """Of what the forward pass leaves behind, prototypes and potentials alone are as long as K or a chunk."""
    loss, params, *rest = published()
    kept = jax.eval_shape(lambda p, *rest: jax.vjp(lambda p: loss(p, *rest), p)[1], params, *rest)
    wide = {leaf.shape for leaf in jax.tree.leaves(kept) if {K, CHUNK} & set(leaf.shape)}
    assert wide == {(DIM, K), (K,)}, wide


def test_the_encoder_runs_once_per_shape_of_view_on_visible_patches_alone():
    """Patches enter by one matrix product per shape, 39 of 196 for masked views; QKV is one product."""
    loss, *arguments = published()
    found = list(equations(jax.make_jaxpr(loss)(*arguments).jaxpr))
    products = shapes(found, "dot_general")
    entered = [a for a, b in products if b == (768, 768) and a[:1] != (IMAGES,)]
    assert sorted(a for a in entered if a[1] in (36, 39)) == [(8 * IMAGES, 36, 768), (8 * IMAGES, 39, 768)]
    whole = [a for a, b in products if b == (768, 768) and a == (IMAGES, 196, 768)]
    assert len(whole) == 2  # the image's patches enter, and its U enters the factorization
    fused = [a for a, b in products if b == (768, 3 * 768)]
    assert sorted(a[1] for a in fused) == [1 + 36 + 16, 1 + 39 + 16, 1 + 196 + 16]
    assert not shapes(found, "conv_general_dilated")


def test_unrolled_layers_are_prepared_once_for_all_views():
    """Cut, given their LayerNorm's scale, and joined after gradients of three shapes of views are summed."""
    layer, stack = (768, 3 * 768), (12, 768, 3 * 768)
    loss, *arguments = published(unroll=12)
    forward = list(equations(jax.make_jaxpr(loss)(*arguments).jaxpr))
    assert shapes(forward, "split").count((stack,)) == 1
    assert shapes(forward, "mul").count(((768, 1), layer)) == 2 * 12  # scale and bias
    found = [e for e in gradient_program(unroll=12) if e.outvars and e.outvars[0].aval.shape == stack]
    made = [e.primitive.name for e in found]
    assert made.count("concatenate") == 1 and not {"pad", "add_any"} & set(made)


def test_the_tokenizer_has_no_backward_pass():
    """As many convolutions in loss and gradient together as in the codes alone."""
    loss, params, views, tokenizer = published("vq")
    forward = list(equations(jax.make_jaxpr(loss)(params, views, tokenizer).jaxpr))
    count = len(shapes(forward, "conv_general_dilated"))
    assert count > 20 and len(shapes(gradient_program("vq"), "conv_general_dilated")) == count


def test_a_crop_is_two_matrix_products_and_is_made_once():
    """8 global and 8 local crops; each is blurred by two products more. Precision: ops/resize.py."""
    spec, canvas = build_recipe(default_config()).views, 512
    numbers = [array((IMAGES,), kind) for kind in (jnp.int32, jnp.int32, jnp.uint32)]
    batch = Batch(array((IMAGES, canvas, canvas, 3), jnp.uint8), *numbers)
    key = jax.eval_shape(jax.random.key, 0)
    found = list(equations(jax.make_jaxpr(functools.partial(make_views, spec=spec))(key, batch).jaxpr))
    dots = [e for e in found if e.primitive.name == "dot_general"]

    def multiply_adds(equation):
        a, (out,) = equation.invars[0].aval.shape, equation.outvars
        return math.prod(a[i] for i in equation.params["dimension_numbers"][0][0]) * math.prod(out.aval.shape)

    def two_products(side, source):
        return 3 * (side * source * source + side * source * side)

    sides = (224, 96)
    expected = sum(8 * (two_products(side, canvas) + two_products(side, side)) for side in sides)
    assert sum(map(multiply_adds, dots)) == IMAGES * expected
    chosen = (jax.lax.Precision.HIGH,) * 2
    assert len(dots) == 8 and all(e.params["precision"] == chosen for e in dots)


def losses(x, source, W, match, streamed):
    """Set alignment of views x (B, V, r, D) with the images' targets, and W alone is trained beside x."""
    rows, g = source.reshape(-1, DIM), jnp.zeros(K)
    if streamed:
        expected = expected_prototype(rows, W, 0.06, g, W, CHUNK).reshape(source.shape)
        target = matched_targets(expected, match)
        return prototype_cross_entropy(x, target, jnp.ones((*x.shape[:-1], 1)), W, 0.12, CHUNK)
    T = jax.lax.stop_gradient(jax.nn.softmax(source @ W / 0.06))
    T = jnp.take_along_axis(T[:, None], match[..., None], axis=2)
    return -jnp.mean(jnp.sum(T * jax.nn.log_softmax(x @ W / 0.12), axis=-1))


def loss_gradient(streamed):
    return jax.jit(jax.value_and_grad(lambda x, s, W, m: losses(x, s, W, m, streamed), argnums=(0, 2)))


def test_loss_memory_is_a_tenth_of_the_direct_form():
    """XLA's account of both programs at K = 16384, for 128 images with 8 views, one device's share."""
    numbers = ((128, 8, 16, DIM), (128, 16, DIM), (DIM, K))
    shape = (*(array(s, jnp.float32) for s in numbers), array((128, 8, 16), jnp.int32))
    ours, direct = (
        loss_gradient(streamed).lower(*shape).compile().memory_analysis().temp_size_in_bytes
        for streamed in (True, False)
    )
    assert ours <= direct / 10, (ours, direct)


def test_loss_and_gradients_at_full_width_are_the_direct_forms():
    """In float64 to 1e-12; in float32 as near to it as the direct form, which rounding keeps 2e-6 away."""
    rng = np.random.default_rng(0)
    x, source, W = (rng.normal(size=s) for s in ((2, 3, 4, DIM), (2, 4, DIM), (DIM, K)))
    x, source = (a / np.linalg.norm(a, axis=-1, keepdims=True) for a in (x, source))
    match = rng.integers(0, 4, (2, 3, 4))

    def errors(found, exact):
        pairs = zip(jax.tree.leaves(found), jax.tree.leaves(exact), strict=True)
        return np.array([np.linalg.norm(np.float64(a) - b) / np.linalg.norm(b) for a, b in pairs])

    with jax.enable_x64():
        streamed, exact = (loss_gradient(s)(*map(jnp.asarray, (x, source, W, match))) for s in (True, False))
    assert (errors(streamed, exact) < 1e-12).all()
    single = (*(jnp.asarray(a, jnp.float32) for a in (x, source, W)), jnp.asarray(match, jnp.int32))
    ours, direct = (errors(loss_gradient(s)(*single), exact) for s in (True, False))
    assert (ours < np.maximum(1e-6, 1.5 * direct)).all() and (ours < 4e-6).all()
