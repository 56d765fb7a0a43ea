"""Semantic segmentation from frozen features: trains a head on U, Z = L S or (S, L) and scores it by mIoU."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int

from sparse_vis.data.cut import labels_at
from sparse_vis.evals.features import AnyArray
from sparse_vis.evals.maps.miou import IGNORE, confusion
from sparse_vis.evals.maps.segmentation_head import Head, Tokens, pixel_logits, segmentation_loss, unbiased
from sparse_vis.runtime.errors import UserError
from sparse_vis.train.optimizer import make_optimizer


@dataclass(frozen=True)
class Protocol:
    """How a head is built and trained; the defaults are the released ones (docs/method.md section 8).

    Attributes:
        batch_norm: normalise the features first. dice: weight of the Dice loss added to cross-entropy.
        at: resolution of the loss: "logits" (patches; labels are resized by nearest neighbour) or "pixels"
            (labels; logits are interpolated).
        learning_rate, weight_decay: of AdamW, constant. clip: maximum global gradient norm.
        batch: images per step. epochs: passes over the training set.
        scale: range of crop area / image area (0.5 to 1 for VOC).
        dtype: of the linear map; BatchNorm and loss are always float32.
    """

    batch_norm: bool = True
    dice: float = 1.0
    at: str = "logits"
    learning_rate: float = 1e-4
    weight_decay: float = 1e-4
    clip: float = 5.0
    batch: int = 2048
    epochs: int = 80
    scale: tuple[float, float] = (0.25, 1.0)
    dtype: str = "bfloat16"


PUBLISHED = Protocol()
LINEAR = Protocol(batch_norm=False, dice=0.0, at="pixels", learning_rate=1e-3, batch=16)


class Probe:
    """Trains a head on batches of frozen features, and scores it.

    Every new shape of a batch is compiled once.

    Args:
        grid: (gh, gw) patches. classes: number of classes. protocol: Protocol, whose epochs the caller runs.
        seed: of the initial weights.

    Attributes:
        matrix: (classes, classes) int64, confusion matrix of all batches passed to `judge`.
    """

    def __init__(self, grid: tuple[int, int], classes: int, protocol: Protocol = PUBLISHED, seed: int = 0):
        self.grid, self.protocol, self.seed = grid, protocol, seed
        self.head = Head(classes, protocol.batch_norm, protocol.dtype)
        self.matrix = np.zeros((classes, classes), np.int64)
        self.variables, self._state = None, None

    def learn(self, tokens: Tokens, labels: AnyArray) -> float:
        """One step of the optimizer; returns the loss.

        Args:
            tokens: of B images. labels: (B, H, W) int, class or 255.

        Raises:
            UserError: a grid that does not fit, or labels out of range.
        """
        _check(tokens, labels, self.grid, self.head.classes)
        if self.protocol.at == "logits":
            labels = labels_at(np.asarray(labels), self.grid)
        if self.variables is None:
            self.variables = self.head.init(jax.random.key(self.seed), jnp.asarray(tokens.x), True)
            self._state = _optimizer(self.protocol).init(self.variables["params"])
        static = self.head, self.grid, self.protocol
        self.variables, self._state, loss = _update(self.variables, self._state, tokens, labels, *static)
        return float(loss)  # reading it keeps one step in flight; many can hang JAX on few cores

    def predict(self, tokens: Tokens, size: tuple[int, int]) -> Int[np.ndarray, "B H W"]:
        """The most likely class of every pixel, for images of size (H, W); ties go to the lowest class.

        Raises:
            UserError: the head has not been trained.
        """
        if self.variables is None:
            raise UserError("Segmentation has no training batches; give at least one image and one epoch.")
        return np.asarray(_predict(self.variables, tokens, self.head, self.grid, size))

    def judge(self, tokens: Tokens, labels: AnyArray) -> None:
        """Add a batch to the confusion matrix at the labels' own size; args and errors as in `learn`."""
        _check(tokens, labels, self.grid, self.head.classes)
        self.matrix += confusion(self.predict(tokens, labels.shape[1:]), labels, self.head.classes)


def _optimizer(protocol: Protocol) -> optax.GradientTransformation:
    rate = optax.constant_schedule(protocol.learning_rate)
    return make_optimizer(rate, weight_decay=protocol.weight_decay, b1=0.9, b2=0.999, clip=protocol.clip)


@partial(jax.jit, static_argnames=("head", "grid", "protocol"))
def _update(variables: dict, state: Any, tokens: Tokens, labels: Array, head, grid, protocol):
    def loss(params):
        logits, changed = head.apply(variables | {"params": params}, tokens.x, True, mutable=["batch_stats"])
        image = pixel_logits(logits, tokens.L, grid, labels.shape[1:])
        return segmentation_loss(image, labels, protocol.dice), changed

    (value, changed), gradient = jax.value_and_grad(loss, has_aux=True)(variables["params"])
    if protocol.batch_norm:
        rows = tokens.x.shape[0] * tokens.x.shape[1]
        changed = {"batch_stats": jax.tree.map(
            lambda old, new: unbiased(old, new, rows), variables["batch_stats"], changed["batch_stats"],
            is_leaf=lambda node: "var" in node,
        )}  # fmt: skip
    change, state = _optimizer(protocol).update(gradient, state, variables["params"])
    return {**changed, "params": optax.apply_updates(variables["params"], change)}, state, value


@partial(jax.jit, static_argnames=("head", "grid", "size"))
def _predict(variables: dict, tokens: Tokens, head, grid, size):
    logits = head.apply(variables, tokens.x, False)
    return jnp.argmax(pixel_logits(logits, tokens.L, grid, size), axis=-1)


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
