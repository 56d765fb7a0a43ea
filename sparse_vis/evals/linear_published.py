"""The published linear probe: frozen encoder, fresh crops every epoch, mean S → LayerNorm → linear."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Float, PRNGKeyArray

from sparse_vis.crops import crop_and_flip, sample_box
from sparse_vis.errors import UserError
from sparse_vis.evals.features import AnyArray, check_labels
from sparse_vis.models.linear import uniform_linear
from sparse_vis.types import Batch

Encode = Callable[[AnyArray], AnyArray]


@dataclass(frozen=True)
class Protocol:
    """The published constants; the size of test images comes with them.

    Attributes:
        learning_rate, weight_decay: of AdamW, constant. batch_size: images per step.
        epochs: passes over train.
        size: pixels a side of the crops. scale: range of their part of the image's area.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    batch_size: int = 2048
    epochs: int = 30
    size: int = 224
    scale: tuple[float, float] = (0.2, 1.0)


@dataclass(frozen=True)
class PublishedResult:
    """Top-1 and top-5 accuracy on test, in [0, 1], and the mean training loss of every epoch."""

    accuracy: float
    top5: float
    losses: tuple[float, ...]


class Head(nn.Module):
    """LayerNorm (eps 1e-5, with scale and shift) and a linear map, on the mean of the tokens."""

    classes: int

    @nn.compact
    def __call__(self, tokens: Float[Array, "B r d"]) -> Float[Array, "B classes"]:
        x = nn.LayerNorm(epsilon=1e-5)(tokens.mean(axis=1))
        return uniform_linear(self.classes, x.shape[-1])(x)


@partial(jax.jit, static_argnames=("size", "scale"))
def random_crops(
    key: PRNGKeyArray, batch: Batch, size: int, scale: tuple[float, float]
) -> Float[Array, "B size size 3"]:
    """One random resized crop of every image (aspect 3/4–4/3, bicubic, clipped), flipped with probability ½.

    Args:
        key: of seed and epoch; every image draws by its own index. batch: images on canvases.
        size, scale: see Protocol.
    """

    def one(canvas, height, width, index):
        box_key, flip_key = jax.random.split(jax.random.fold_in(key, index))
        box = sample_box(box_key, height, width, scale, (3 / 4, 4 / 3))
        return crop_and_flip(canvas, box, jax.random.bernoulli(flip_key, np.float32(0.5)), size)

    return jax.vmap(one)(batch.image, batch.height, batch.width, batch.index)


def published_linear(
    encode: Encode,
    train: Callable[[int], Iterable[tuple[Batch, AnyArray]]],
    test: Iterable[tuple[AnyArray, AnyArray]],
    *,
    classes: int,
    protocol: Protocol = Protocol(),
    seed: int = 0,
) -> PublishedResult:
    """Trains the published probe and measures it once, after the last epoch.

    Args:
        encode: images (B, H, W, 3) in [0, 1] → tokens (B, r, d), S or another encoder's; jitted by its owner.
        train: number of the epoch → its shuffled images in parts of any size, as canvases, and their classes.
        test: images as they are encoded (published: short side 256, centre crop 224, bicubic, as
            `read_records` makes them), uint8 or float in [0, 1], and classes (B,).
        classes: number of classes. protocol: see there. seed: of crops, flips and first weights.

    Raises:
        UserError: no training or no test batches, or labels out of range.
    """
    head, optimizer = Head(classes), _optimizer(protocol)
    weights_key, crops_key = jax.random.split(jax.random.key(seed))
    params, state, losses = None, None, []
    for epoch in range(protocol.epochs):
        key, batches = jax.random.fold_in(crops_key, epoch), []
        for tokens, labels in _steps(encode, key, train(epoch), protocol):
            check_labels("train", labels, classes)
            if params is None:
                params = head.init(weights_key, tokens)["params"]
                state = optimizer.init(params)
            params, state, loss = _update(params, state, tokens, labels, head, protocol)
            batches.append(float(loss))  # reading it keeps one step in flight: many hang JAX on few cores
        losses.append(float(np.mean(batches)) if batches else float("nan"))
    if params is None:
        raise UserError("The linear probe has no training batches; give at least one image and one epoch.")
    return PublishedResult(*_measure(encode, head, params, test), losses=tuple(losses))


def _steps(
    encode: Encode, key: PRNGKeyArray, parts: Iterable, protocol: Protocol
) -> Iterator[tuple[Array, Array]]:
    """Tokens of fresh crops and labels, part after part, put together to the batches of the optimizer."""
    tokens, labels = [], []
    for batch, classes in parts:
        tokens.append(np.asarray(encode(random_crops(key, batch, protocol.size, protocol.scale))))
        labels.append(np.asarray(classes))
        while sum(map(len, labels)) >= protocol.batch_size:
            x, y = np.concatenate(tokens), np.concatenate(labels)
            yield jnp.asarray(x[: protocol.batch_size]), jnp.asarray(y[: protocol.batch_size])
            tokens, labels = [x[protocol.batch_size :]], [y[protocol.batch_size :]]
    if sum(map(len, labels)):
        yield jnp.asarray(np.concatenate(tokens)), jnp.asarray(np.concatenate(labels))


def _measure(encode: Encode, head: Head, params: dict, test: Iterable) -> tuple[float, float]:
    hits = np.zeros(2)
    count = 0
    for images, labels in test:
        check_labels("test", labels, head.classes)
        scale = 255 if images.dtype == np.uint8 else 1
        logits = head.apply({"params": params}, jnp.asarray(encode(jnp.asarray(images, jnp.float32) / scale)))
        top = np.asarray(jax.lax.top_k(logits, min(5, head.classes))[1])
        right = top == np.asarray(labels)[:, None]
        hits += right[:, 0].sum(), right.sum()
        count += len(labels)
    if not count:
        raise UserError("The linear probe has no test batches; give at least one image.")
    return float(hits[0] / count), float(hits[1] / count)


def _optimizer(protocol: Protocol) -> optax.GradientTransformation:
    return optax.adamw(protocol.learning_rate, weight_decay=protocol.weight_decay)


@partial(jax.jit, static_argnames=("head", "protocol"))
def _update(params: dict, state, tokens: Array, labels: Array, head: Head, protocol: Protocol):
    def loss(params):
        logits = head.apply({"params": params}, tokens)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    value, gradient = jax.value_and_grad(loss)(params)
    change, state = _optimizer(protocol).update(gradient, state, params)
    return optax.apply_updates(params, change), state, value
