"""Direct forms that the project does without, each beside ours: losses, crops and the VQ tokenizer.

A pair is two functions of the same arrays, "before" and "after", with the same result up to rounding unless
the pair says otherwise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import random

from sparse_vis.losses.alignment import matched_targets
from sparse_vis.losses.clustering import prototype_cross_entropy
from sparse_vis.models.vqgan import VQGAN
from sparse_vis.ops.prototypes import expected_prototype
from sparse_vis.ops.resize import keys_kernel
from sparse_vis.views.crops import crop

PROTOTYPES, DIM, TOKENS, VIEWS = 16384, 256, 16, 8


@dataclasses.dataclass(frozen=True)
class Pair:
    """What is compared.

    Attributes:
        before, after: in words. forms: the functions. arguments: of both. same: whether results must agree.
    """

    before: str
    after: str
    forms: tuple[Callable, Callable]
    arguments: tuple
    same: bool = True


def normal(*shape: int) -> jax.Array:
    """Standard normal numbers, the same for the same shape."""
    return random.normal(random.key(sum(shape)), shape)


def unit(*shape: int) -> jax.Array:
    """Vectors of length one."""
    x = normal(*shape)
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def gradient(function: Callable, *argnums: int) -> Callable:
    """Value of the mean square of the result, and its gradients."""
    return jax.value_and_grad(lambda *a: jnp.mean(function(*a).astype(jnp.float32) ** 2), argnums)


def losses(images: int, chunk: int) -> Pair:
    """Set alignment of B/16's masked views with the image's targets, and its gradients."""

    def direct(x, source, W, match):
        T = jax.lax.stop_gradient(jax.nn.softmax(source @ W / 0.06))
        T = jnp.take_along_axis(T[:, None], match[..., None], axis=2)
        return -jnp.mean(jnp.sum(T * jax.nn.log_softmax(x @ W / 0.12), axis=-1))

    def streamed(x, source, W, match):
        rows, g = source.reshape(-1, DIM), jnp.zeros(PROTOTYPES)
        expected = expected_prototype(rows, W, 0.06, g, W, chunk).reshape(source.shape)
        target = matched_targets(expected, match)
        return prototype_cross_entropy(x, target, jnp.ones((*x.shape[:-1], 1)), W, 0.12, chunk)

    forms = tuple(jax.value_and_grad(f, (0, 2)) for f in (direct, streamed))
    match = random.randint(random.key(0), (images, VIEWS, TOKENS), 0, TOKENS)
    arguments = (
        unit(images, VIEWS, TOKENS, DIM), unit(images, TOKENS, DIM), normal(DIM, PROTOTYPES), match
    )  # fmt: skip
    return Pair(
        "targets and logits of every view", f"streamed, {chunk} prototypes at a time", forms, arguments
    )


def targets(images: int, chunk: int) -> Pair:
    """T W^T of the image's tokens, from the whole assignment matrix or rebuilt from potentials in chunks."""

    def whole(x, W, g):
        return jax.nn.softmax(x @ W / 0.06 + g) @ W.T

    def rebuilt(x, W, g):
        return expected_prototype(x, W, 0.06, g, W, chunk)

    arguments = (unit(images * TOKENS, DIM), normal(DIM, PROTOTYPES), normal(PROTOTYPES))
    return Pair("assignments as a matrix", "rebuilt from potentials", (whole, rebuilt), arguments)


def crops(images: int) -> Pair:
    """8 crops of 224 px of each canvas of 512 px: four gathered taps per axis, or two matrix products."""

    def taps(offset, length, size):
        source = jnp.arange(size) * ((length - 1) / (size - 1))
        base = jnp.floor(source).astype(jnp.int32)[:, None] + jnp.arange(-1, 3)
        return jnp.clip(base, 0, length - 1) + offset, keys_kernel(jnp.abs(source[:, None] - base))

    def gathered(canvas, box):
        top, left, height, width = box
        (rows, down), (columns, across) = taps(top, height, 224), taps(left, width, 224)
        image = canvas.astype(jnp.float32) / 255
        image = jnp.einsum("htWc,ht->hWc", image[rows], down)
        return jnp.einsum("hwtc,wt->hwc", image[:, columns], across)

    def per_view(form):
        return jax.vmap(lambda canvas, boxes: jax.vmap(lambda box: form(canvas, box))(boxes))

    boxes = tuple(random.randint(random.key(i), (images, VIEWS), *r) for i, r in enumerate(
        ((0, 80), (0, 80), (240, 420), (240, 420))
    ))  # fmt: skip
    canvas = random.randint(random.key(9), (images, 512, 512, 3), 0, 256).astype(jnp.uint8)
    forms = (per_view(gathered), per_view(lambda canvas, box: crop(canvas, box, 224)))
    return Pair("gathered taps", "two matrix products", forms, (canvas, boxes))


def tokenizer(side: int) -> Pair:
    """Codes of one image by the released VQ tokenizer with random weights, in float32 and in bfloat16."""
    modules = [VQGAN(128, (1, 1, 2, 2, 4), 2, 256, 1024, dtype) for dtype in ("float32", "bfloat16")]
    pixels = random.uniform(random.key(0), (1, side, side, 3))
    params = jax.jit(modules[0].init)(random.key(1), jnp.zeros((1, 32, 32, 3)))

    def codes(module: nn.Module):
        return lambda params, x: module.apply(params, x, method=lambda m, x: m.codes(m.encode(x)))

    return Pair("float32", "bfloat16", tuple(map(codes, modules)), (params, pixels), same=False)
