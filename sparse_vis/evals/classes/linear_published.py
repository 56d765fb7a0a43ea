"""The published linear probe: frozen encoder, new crops in every epoch, mean S → LayerNorm → linear."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from sparse_vis.evals.dataset import Part
from sparse_vis.evals.features import POOLED, AnyArray, Regrouped, check_labels
from sparse_vis.evals.maps import published_images as published
from sparse_vis.evals.task import Bench, Result, Task
from sparse_vis.models.layers import uniform_linear
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.progress import Progress

READS = ("sparse", "dense", "cls")  # the first of these that an encoder gives is used
Batches = Iterable[tuple[AnyArray, AnyArray]]  # tokens and classes


@dataclass(frozen=True)
class LinearProtocol:
    """Hyperparameters of the probe; the defaults are the released ones."""

    learning_rate: float = 1e-3
    weight_decay: float = 1e-4
    clip: float = 5.0  # maximum global gradient norm
    batch_size: int = 2048
    epochs: int = 30
    validation: float = 0.1  # share of train that is held out, and not used at all
    size: int = 224  # side of the crops in pixels
    scale: tuple[float, float] = (0.2, 1.0)  # range of crop area / image area
    dtype: str = "bfloat16"  # of encoder and linear map; LayerNorm and loss are always float32


class Head(nn.Module):
    """LayerNorm (eps 1e-5, with scale and shift) and a linear map, on the mean of the tokens."""

    classes: int
    dtype: str = "float32"

    @nn.compact
    def __call__(self, tokens: Float[Array, "B r d"]) -> Float[Array, "B classes"]:
        x = nn.LayerNorm(epsilon=1e-5)(tokens.mean(axis=1))
        return uniform_linear(self.classes, x.shape[-1], self.dtype)(x).astype(jnp.float32)


def published_linear(
    train: Callable[[int], Batches], test: Batches, *, classes: int, protocol: LinearProtocol, seed: int = 0
) -> tuple[dict[str, float], list[float]]:
    """Train the published probe and test it once, after the last epoch.

    Args:
        train: number of an epoch → batches, of any size, of tokens (B, r, d) of crops and classes (B,).
        test: the same of the test images. seed: of the initial weights.

    Returns:
        {"accuracy", "top5"} on test, in [0, 1], and the mean training loss of every epoch.

    Raises:
        UserError: there are no training or test batches, or labels are out of range.
    """
    head, optimizer = Head(classes, protocol.dtype), published.adamw(protocol)
    params, state, losses = None, None, []
    for epoch in range(protocol.epochs):
        batches = []
        for tokens, labels in _steps(train(epoch), protocol.batch_size):
            check_labels("train", labels, classes)
            if params is None:
                params = head.init(jax.random.key(seed), tokens)["params"]
                state = optimizer.init(params)
            params, state, loss = _update(params, state, tokens, labels, head, protocol)
            batches.append(float(loss))  # reading it keeps one step in flight; many can hang JAX on few cores
        losses.append(float(np.mean(batches)) if batches else float("nan"))
    if params is None:
        raise UserError("the linear probe has no training batches; give at least one image and one epoch.")
    return _test(head, params, test), losses


def _steps(parts: Iterable, batch_size: int) -> Iterator[tuple[Array, Array]]:
    """Regroup tokens and labels, given in parts of any size, into batches of the optimizer."""
    groups = Regrouped(batch_size)

    def on_device(group: dict[str, np.ndarray]) -> tuple[Array, Array]:
        return jnp.array(group["tokens"]), jnp.array(group["labels"])  # copies: the group's memory is reused

    for tokens, labels in parts:
        group = {"tokens": np.asarray(tokens), "labels": np.asarray(labels)}
        yield from map(on_device, groups.add(group))
    yield from map(on_device, groups.rest())


def _test(head: Head, params: dict, test: Iterable) -> dict[str, float]:
    hits, count = np.zeros(2), 0
    for tokens, labels in test:
        check_labels("test", labels, head.classes)
        logits = head.apply({"params": params}, jnp.asarray(tokens))
        top = np.asarray(jax.lax.top_k(logits, min(5, head.classes))[1])
        right = top == np.asarray(labels)[:, None]
        hits += right[:, 0].sum(), right.sum()
        count += len(labels)
    if not count:
        raise UserError("the linear probe has no test batches; give at least one image.")
    return {"accuracy": float(hits[0] / count), "top5": float(hits[1] / count)}


@partial(jax.jit, static_argnames=("head", "protocol"))
def _update(params: dict, state, tokens: Array, labels: Array, head: Head, protocol: LinearProtocol):
    def loss(params):
        logits = head.apply({"params": params}, tokens)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    value, gradient = jax.value_and_grad(loss)(params)
    change, state = published.adamw(protocol).update(gradient, state, params)
    return optax.apply_updates(params, change), state, value


def _protocol(config: ConfigDict) -> LinearProtocol:
    e = config.eval
    return LinearProtocol(**e.linear_published, size=config.model.image_size, dtype=e.dtype)


def _labelled(
    bench: Bench, part: Part, cuts: published.Maker, rows: np.ndarray, progress: Progress
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of tokens and classes of crops of those images in `rows` that have a class, in this order.

    Of each crop there is one token, the mean, as the head averages over tokens anyway.
    """
    key = next(key for key in READS if key in bench.encoder.gives)

    def compute(images: np.ndarray, labels: list[int]) -> dict[str, np.ndarray]:
        tokens = bench.encode(images, key)[key].mean(axis=1, keepdims=True)
        return {"tokens": tokens, "classes": np.asarray(labels, np.int32)}

    for found in published.squares_in_shares(part, cuts, rows, bench.batch, published.label, compute):
        known = found["classes"] >= 0
        if known.any():
            yield found["tokens"][known], found["classes"][known]
        progress.add(len(known))


def _measure(bench: Bench, config: ConfigDict) -> Result:
    train, test = (bench.data.parts[name] for name in bench.data.labelled)
    chosen, seed = _protocol(config), bench.seed
    train = train.without(chosen.validation, seed)
    progress = bench.progress("linear_published", chosen.epochs * len(train))

    def epoch(number: int):
        return _labelled(bench, train, *published.epoch(train, chosen.scale, seed, number), progress)

    looking = bench.progress("linear_published, test", len(test))
    tests = _labelled(bench, test, published.centre_cuts(test), np.arange(len(test)), looking)
    found, losses = published_linear(epoch, tests, classes=bench.data.classes, protocol=chosen, seed=seed)
    key = next(key for key in READS if key in bench.encoder.gives)
    return Result({POOLED[key]: found}, details={"losses": losses})


def _settings(config: ConfigDict) -> dict:
    chosen = _protocol(config)
    about = {"layer_norm_eps": 1e-5, "images": published.ABOUT, "departures": published.departures(chosen)}
    return {**dataclasses.asdict(chosen), **published.OPTIMIZER, **about}


LINEAR_PUBLISHED = Task(_measure, ("label",), READS, lambda data: {}, _settings, least=(2, 1))
