"""Direct forms of the ViT's parts that the project does without, each beside ours; all pairs by name."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import random

from benchmarks.direct import TOKENS, VIEWS, Pair, crops, gradient, losses, normal, targets, tokenizer
from sparse_vis.models.attention import plain_attention
from sparse_vis.models.encoder import Encoder, patchify
from sparse_vis.models.gelu import gelu
from sparse_vis.models.linear import product
from sparse_vis.models.norm import EPSILON, LayerNorm, standardize
from sparse_vis.train.optimizer import make_optimizer


def erfc_gelu(x: jax.Array) -> jax.Array:
    """jax.nn's exact GELU."""
    return jax.nn.gelu(x, approximate=False)


def gelu_alone(images: int) -> Pair:
    """GELU of the hidden numbers of B/16's MLP, and its way back."""

    def there_and_back(act):
        def both(x, change):
            y, pull = jax.vjp(act, x)
            return y, pull(change)[0]

        return both

    x, change = random.normal(random.key(0), (2, images * 213, 3072))
    forms = (there_and_back(erfc_gelu), there_and_back(gelu))
    return Pair("erfc (jax.nn.gelu)", "erf, slope formed with the value", forms, (x, change))


def mlp(images: int) -> Pair:
    """The MLP of a B/16 block with its gradients."""

    def with_gelu(act):
        return gradient(lambda x, a, b: act(x @ a) @ b, 0, 1, 2)

    arguments = (normal(images * 213, 768), 0.02 * normal(768, 3072), 0.02 * normal(3072, 768))
    return Pair(
        "erfc (jax.nn.gelu)", "erf, slope with value", tuple(map(with_gelu, (erfc_gelu, gelu))), arguments
    )


def small_encoder() -> Encoder:
    """B/16 with 2 of its 12 layers."""
    return Encoder(224, 16, 768, 2, 12, 3072, queries=TOKENS)


def view_groups(images: int) -> Pair:
    """Masked views through 2 layers of B/16, one call per view or one for all."""
    encoder, pixels = small_encoder(), random.uniform(random.key(0), (images, VIEWS, 224, 224, 3))
    visible = jnp.argsort(random.uniform(random.key(1), (images, VIEWS, 196)))[..., :39]
    params = encoder.init(random.key(2), pixels[:, 0])

    def each(params, pixels, visible):
        outputs = [encoder.apply(params, pixels[:, v], visible[:, v]).S for v in range(VIEWS)]
        return jnp.stack(outputs, axis=1) ** 2  # the mean square of S, normalised, has no gradient

    def together(params, pixels, visible):
        S = encoder.apply(params, pixels.reshape(-1, 224, 224, 3), visible.reshape(-1, 39)).S
        return S.reshape(images, VIEWS, *S.shape[1:]) ** 2

    forms = (gradient(each, 0), gradient(together, 0))
    return Pair(f"{VIEWS} encoder calls", "one call per shape", forms, (params, pixels, visible))


def last_layer(images: int) -> Pair:
    """CLS of local views from 2 layers of B/16, laid out, with gradients."""
    encoder, pixels = small_encoder().clone(unroll=2), random.uniform(random.key(0), (images * 8, 96, 96, 3))
    params = encoder.init(random.key(1), pixels)

    def whole(params, pixels):
        return encoder.apply(params, pixels).cls ** 2

    def only_cls(params, pixels):
        return encoder.apply(params, pixels, only="cls").cls ** 2

    forms = (gradient(whole, 0), gradient(only_cls, 0))
    return Pair("all tokens in the last layer", "CLS alone", forms, (params, pixels))


def visible_patches(images: int) -> Pair:
    """Embedding of masked views: all patches and then the visible ones, or these alone; with gradient."""
    pixels = random.uniform(random.key(0), (images * VIEWS, 224, 224, 3))
    visible = jnp.argsort(random.uniform(random.key(1), (images * VIEWS, 196)))[:, :39, None]

    def take(x, visible):
        return jnp.take_along_axis(x, visible, axis=1)

    def all_patches(kernel, pixels, visible):
        return take(patchify(pixels, 16) @ kernel, visible)

    def seen(kernel, pixels, visible):
        return take(patchify(pixels, 16), visible) @ kernel

    forms = (gradient(all_patches, 0), gradient(seen, 0))
    arguments = (0.02 * normal(768, 768), pixels, visible)
    return Pair("all patches embedded", "visible ones embedded", forms, arguments)


def patch_embedding(images: int) -> Pair:
    """Patches of 224 px images: a convolution with stride 16, or pixels times a matrix; with gradient."""
    pixels = random.uniform(random.key(0), (images, 224, 224, 3))
    layout = ("NHWC", "HWIO", "NHWC")

    def convolution(kernel, pixels):
        kernel = kernel.reshape(16, 16, 3, -1)
        out = jax.lax.conv_general_dilated(pixels, kernel, (16, 16), "VALID", dimension_numbers=layout)
        return out.reshape(images, 196, -1)

    def matrix(kernel, pixels):
        return patchify(pixels, 16) @ kernel

    forms = (gradient(convolution, 0), gradient(matrix, 0))
    return Pair("convolution", "matrix product", forms, (0.02 * normal(768, 768), pixels))


def fused_qkv(images: int) -> Pair:
    """Queries, keys and values of B/16: three products or one; with gradients."""

    def three(x, w):
        return jnp.concatenate([x @ part for part in jnp.split(w, 3, axis=1)], axis=1)

    forms = (gradient(three, 0, 1), gradient(jnp.matmul, 0, 1))
    return Pair("three products", "one product", forms, (normal(images * 213, 768), 0.02 * normal(768, 2304)))


def kernel_gradient(images: int) -> Pair:
    """The two products of a B/16 block's MLP with their gradients, nothing between them."""

    def both(multiply):
        return gradient(lambda x, w, v: multiply(multiply(x, w), v), 0, 1, 2)

    arguments = (normal(images, 213, 768), 0.02 * normal(768, 3072), 0.02 * normal(3072, 768))
    names = "autodiff's: two axes contracted", "one product of matrices"
    return Pair(*names, (both(jnp.matmul), both(product)), arguments)


def layer_norm(images: int) -> Pair:
    """LayerNorm of B/16's tokens and the linear map to q, k and v, with their gradients."""
    flaxs, ours = nn.LayerNorm(epsilon=EPSILON, use_fast_variance=False), LayerNorm(768)

    def direct(x, norm, kernel, bias):
        return product(flaxs.apply({"params": norm}, x), kernel) + bias

    def folded(x, norm, kernel, bias):
        kernel, bias = ours.apply({"params": norm}, kernel, bias, method="into")
        return product(standardize(x), kernel) + bias

    norm = {"scale": 1 + 0.1 * normal(768), "bias": normal(768)}
    arguments = (normal(images * 213, 768), norm, 0.02 * normal(768, 2304), normal(2304))
    forms = (gradient(direct, 0, 1, 2, 3), gradient(folded, 0, 1, 2, 3))
    return Pair("flax's, then the product", "scale and bias in the kernel", forms, arguments)


def attention(images: int, length: int) -> Pair:
    """Attention of B/16 and its gradients."""
    theirs = functools.partial(jax.nn.dot_product_attention, implementation="xla")
    forms = (gradient(theirs, 0, 1, 2), gradient(plain_attention, 0, 1, 2))
    q, k, v = random.normal(random.key(0), (3, images, length, 12, 64))
    return Pair("jax.nn.dot_product_attention, xla", "plain_attention", forms, (q, k, v))


def attention_weights(images: int) -> Pair:
    """Attention of B/16, forward: the weights divided by their sums, or what the weights make of v."""

    def direct(q, k, v):
        q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
        weights = jax.nn.softmax(q @ jnp.swapaxes(k, 2, 3) * q.shape[-1] ** -0.5)
        return jnp.swapaxes(weights @ v, 1, 2)

    arguments = tuple(random.normal(random.key(0), (3, images, 213, 12, 64)))
    return Pair("weights divided by their sums", "what they make of v", (direct, plain_attention), arguments)


def attention_cut(images: int, length: int) -> Pair:
    """q, k and v of B/16 cut from one array, and attention, with the array's gradient."""

    def slices(qkv):
        qkv = qkv.reshape(images, length, 3, 12, 64)
        return plain_attention(*(qkv[:, :, i] for i in range(3)))

    def split(qkv):
        parts = jnp.split(qkv, 3, axis=-1)
        return plain_attention(*(part.reshape(images, length, 12, 64) for part in parts))

    forms = (gradient(slices, 0), gradient(split, 0))
    return Pair("three slices", "split", forms, (normal(images, length, 3 * 768),))


def update(layers: int) -> Pair:
    """One step of AdamW for MLP kernels of B/16, not taken where a gradient is not finite."""
    optimizer = make_optimizer(optax.constant_schedule(1e-4), weight_decay=0.05, b1=0.9, b2=0.95, clip=3.0)
    params = {"mlp_in": normal(layers, 768, 3072), "mlp_out": normal(layers, 3072, 768)}
    gradients = jax.tree.map(lambda x: 0.1 * x, params)

    def branch(params, state, gradients):
        updates, new = optimizer.update(gradients, state, params)
        good = jnp.isfinite(optax.global_norm(gradients)) & jnp.isfinite(optax.global_norm(updates))
        old = (params, state)
        return jax.lax.cond(good, lambda x: (optax.apply_updates(x[0], updates), new), lambda x: x, old)

    def choice(params, state, gradients):
        updates, new = optimizer.update(gradients, state, params)
        good = jnp.isfinite(optax.global_norm(gradients))
        moved = (optax.apply_updates(params, updates), new)
        return jax.tree.map(functools.partial(jnp.where, good), moved, (params, state))

    arguments = (params, optimizer.init(params), gradients)
    return Pair("a branch behind all updates", "chosen per number", (branch, choice), arguments)


PAIRS = {
    "losses": lambda: losses(2, 1024),
    "losses-whole": lambda: losses(2, 16384),
    "targets": lambda: targets(8, 1024),
    "views": lambda: view_groups(1),
    "last-layer": lambda: last_layer(2),
    "visible-patches": lambda: visible_patches(2),
    "qkv": lambda: fused_qkv(4),
    "kernel-gradient": lambda: kernel_gradient(4),
    "patch-embedding": lambda: patch_embedding(4),
    "crops": lambda: crops(1),
    "gelu": lambda: gelu_alone(4),
    "mlp": lambda: mlp(4),
    "layer-norm": lambda: layer_norm(4),
    "attention-image": lambda: attention(2, 213),
    "attention-masked": lambda: attention(16, 56),
    "attention-weights": lambda: attention_weights(8),
    "attention-cut": lambda: attention_cut(16, 56),
    "update": lambda: update(6),
    "tokenizer": lambda: tokenizer(128),
}
