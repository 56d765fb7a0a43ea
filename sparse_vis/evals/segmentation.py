"""Semantic segmentation from frozen features: trains a head on U, Z = L S or (S, L) and scores it by mIoU."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from sparse_vis.errors import UserError
from sparse_vis.evals.features import AnyArray
from sparse_vis.evals.miou import IGNORE, confusion
from sparse_vis.evals.segmentation_head import Head, Tokens, pixel_logits, segmentation_loss


@dataclass(frozen=True)
class Protocol:
    """How a head is made and trained; the defaults are the published ones (method.md section 8).

    Attributes:
        batch_norm: normalise the features first. dice: weight of the Dice loss beside cross-entropy.
        learning_rate, weight_decay: of AdamW, constant. epochs: passes over the training set.
    """

    batch_norm: bool = True
    dice: float = 1.0
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    epochs: int = 80


PUBLISHED = Protocol()
LINEAR = Protocol(batch_norm=False, dice=0.0, learning_rate=1e-3)
Batches = Iterable[tuple[Tokens, AnyArray]]


def fit_head(
    epoch: Callable[[int], Batches],
    grid: tuple[int, int],
    classes: int,
    protocol: Protocol = PUBLISHED,
    seed: int = 0,
) -> tuple[Head, dict]:
    """Trains a head on batches of frozen features.

    Args:
        epoch: number of the epoch → its batches: Tokens and labels (B, H, W) int, class or 255. Features of
            fresh crops, or the same ones every time. Every new shape compiles once more.
        grid: (gh, gw) patches. classes: number of classes. protocol: see there. seed: of the first weights.

    Returns:
        The head and its variables.

    Raises:
        UserError: no batches, a grid that does not fit, or labels out of range.
    """
    head, optimizer = Head(classes, protocol.batch_norm), _optimizer(protocol)
    variables, state = None, None
    for number in range(protocol.epochs):
        for tokens, labels in epoch(number):
            _check(tokens, labels, grid, classes)
            if variables is None:
                variables = head.init(jax.random.key(seed), jnp.asarray(tokens.x), True)
                state = optimizer.init(variables["params"])
            variables, state, loss = _update(variables, state, tokens, labels, head, grid, protocol)
            loss.block_until_ready()  # many steps in flight hang JAX on few cores
    if variables is None:
        raise UserError("Segmentation has no training batches; give at least one image and one epoch.")
    return head, variables


def _optimizer(protocol: Protocol) -> optax.GradientTransformation:
    return optax.adamw(protocol.learning_rate, weight_decay=protocol.weight_decay)


@partial(jax.jit, static_argnames=("head", "grid", "protocol"))
def _update(variables: dict, state: Any, tokens: Tokens, labels: Array, head, grid, protocol):
    def loss(params):
        logits, changed = head.apply(variables | {"params": params}, tokens.x, True, mutable=["batch_stats"])
        image = pixel_logits(logits, tokens.L, grid, labels.shape[1:])
        return segmentation_loss(image, labels, protocol.dice), changed

    (value, changed), gradient = jax.value_and_grad(loss, has_aux=True)(variables["params"])
    change, state = _optimizer(protocol).update(gradient, state, variables["params"])
    return {**changed, "params": optax.apply_updates(variables["params"], change)}, state, value


def predict(
    head: Head, variables: dict, tokens: Tokens, grid: tuple[int, int], size: tuple[int, int]
) -> Int[np.ndarray, "B H W"]:
    """The most likely class of every pixel; of equals the lowest. Args as in `fit_head`; size: (H, W)."""
    return np.asarray(_predict(variables, tokens, head, grid, size))


@partial(jax.jit, static_argnames=("head", "grid", "size"))
def _predict(variables: dict, tokens: Tokens, head, grid, size):
    logits = head.apply(variables, tokens.x, False)
    return jnp.argmax(pixel_logits(logits, tokens.L, grid, size), axis=-1)


def confusion_of(
    head: Head, variables: dict, test: Batches, grid: tuple[int, int]
) -> Int[np.ndarray, "classes classes"]:
    """The confusion matrix of a whole set at the labels' own resolution, added up batch by batch.

    Args:
        head, variables: from `fit_head`. test: batches as there; their sizes may differ. grid: (gh, gw).

    Raises:
        UserError: a grid that does not fit, or labels out of range.
    """
    total = np.zeros((head.classes, head.classes), np.int64)
    for tokens, labels in test:
        _check(tokens, labels, grid, head.classes)
        total += confusion(predict(head, variables, tokens, grid, labels.shape[1:]), labels, head.classes)
    return total


def _check(tokens: Tokens, labels: AnyArray, grid: tuple[int, int], classes: int) -> None:
    patches = (tokens.x if tokens.L is None else tokens.L).shape[1]
    if patches != grid[0] * grid[1] or len(tokens.x) != len(labels):
        raise UserError(
            f"{len(tokens.x)} images of {patches} patches do not fit {len(labels)} label maps and the grid "
            f"{grid[0]}x{grid[1]}; pass the grid the features were computed on and one map per image."
        )
    known = np.asarray(labels)[np.asarray(labels) != IGNORE]
    if known.size and not 0 <= known.min() <= known.max() < classes:
        raise UserError(
            f"Segmentation labels go from {known.min()} to {known.max()}; with {classes} classes they must "
            f"lie between 0 and {classes - 1}, or be {IGNORE} (ignored)."
        )
