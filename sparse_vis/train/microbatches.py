"""Gradients of a global batch that does not fit into memory: two passes over its parts."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sparse_vis.losses.targets import balance
from sparse_vis.train.recipe import Recipe
from sparse_vis.types import Batch, Embeddings, Potentials, Views


def accumulate(
    gradient: Callable,
    recipe: Recipe,
    params: dict,
    batch: Batch,
    view: Callable[[Batch], Views],
    teacher: dict | None,
):
    """((loss, terms), gradients) of the whole batch: the mean over parts of
    `gradient(params, views, potentials)`.

    A first pass computes the Sinkhorn potentials of the whole batch, so that the result is that of the whole
    batch at once, up to rounding. (DEVIATION: the published accumulation balances each part on its own, which
    changes the objective; loss.balance_over="microbatch" does that.)
    """
    parts, potentials = split_batch(batch, recipe.microbatches), None
    if recipe.loss.balance_over == "batch":
        potentials = global_potentials(recipe, params, parts, view, teacher)

    def one(part: Batch):
        return gradient(params, view(part), potentials)

    def add(sums, part: Batch):
        return jax.tree.map(jnp.add, sums, one(part)), None

    shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    sums, _ = jax.lax.scan(add, zeros, parts)
    return jax.tree.map(lambda x: x / recipe.microbatches, sums)


def split_batch(batch: Batch, parts: int) -> Batch:
    """(B, ...) -> (parts, B / parts, ...), each part spread evenly over all devices."""
    return jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)


def global_potentials(
    recipe: Recipe, params: dict, parts: Batch, view: Callable[[Batch], Views], teacher: dict | None
) -> Potentials:
    """First pass: Sinkhorn potentials of the whole batch, from forward passes over its parts."""
    weights = params if teacher is None else teacher

    def embed(part: Batch):
        views = view(part)
        pixels = views.image if teacher is None else views.masked[:, 1]
        _, embeddings = recipe.model.apply({"params": weights}, pixels, method="embed")
        return embeddings.S, embeddings.cls

    # Image axis before part axis, so that rows stay on their devices; to Sinkhorn, the order does not matter.
    S, cls = (x.swapaxes(0, 1) for x in jax.lax.map(embed, parts))
    prototypes = weights["sparse_head"]["prototypes"], weights["cls_head"]["prototypes"]
    return balance(jax.lax.stop_gradient(Embeddings(S, cls, *prototypes)), recipe.loss)
