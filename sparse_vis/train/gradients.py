"""Loss and gradients of a global batch, in one pass or in exact microbatches."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from sparse_vis.losses.objective import objective
from sparse_vis.losses.spec import LossSpec
from sparse_vis.losses.targets import balance, make_targets, own_source
from sparse_vis.models.stellar import Stellar
from sparse_vis.types import Batch, Potentials, TargetSource, Views


def loss_fn(
    params: dict,
    model: Stellar,
    spec: LossSpec,
    views: Views,
    teacher: dict | None,
    tokenizer: dict | None,
    potentials: Potentials | None,
):
    """Weighted total loss of one batch of views, and its terms.

    Args:
        params: the student's. model, spec: what to compute.
        views: Views. teacher: EMA parameters, or None if the student's own embeddings give the targets.
        tokenizer: frozen parameters of the VQ tokenizer; None for pixels.
        potentials: of the global batch, if `views` is only a part of it; else None.

    Returns:
        (total, (terms, outputs, targets)).
    """
    outputs = model.apply({"params": params}, views, masked_U=bool(spec.inpainting))
    source = (
        own_source(outputs)
        if teacher is None
        else model.apply({"params": teacher}, views.masked[:, 1], method="target_source")
    )
    if spec.inpainting:
        grid = model.grid(*views.image.shape[1:3])
        inpainted = model.apply({"params": params}, outputs.masked_U, views.visible, grid, method="inpaint")
        outputs = outputs.replace(inpainted=inpainted)
    codes = None
    if tokenizer is not None:
        codes = model.apply({"params": {"tokenizer": tokenizer}}, views.image, method="codes")
    targets = make_targets(
        outputs,
        source,
        potentials or balance(source, spec),
        views,
        spec,
        teacher=teacher is not None,
        codes=codes,
    )
    total, terms = objective(outputs, targets, spec)
    return total, (terms, outputs, targets)


def split_batch(batch: Batch, parts: int) -> Batch:
    """(B, ...) -> (parts, B / parts, ...), each part spread evenly over all devices."""
    return jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)


def global_potentials(
    params: dict, model: Stellar, spec: LossSpec, parts: Batch, view: Callable, teacher: dict | None
) -> Potentials:
    """First pass: Sinkhorn potentials of the whole batch, from forward passes over its parts."""

    def embed(part: Batch):
        views = view(part)
        weights, pixels = (params, views.image) if teacher is None else (teacher, views.masked[:, 1])
        source = model.apply({"params": weights}, pixels, method="target_source")
        return source.sparse, source.cls

    # Image axis before part axis, so that rows stay on their devices; Sinkhorn needs no order of rows.
    sparse, cls = (x.swapaxes(0, 1) for x in jax.lax.map(embed, parts))
    heads = params if teacher is None else teacher
    source = TargetSource(
        S=sparse,
        sparse=sparse,
        cls=cls,
        sparse_prototypes=heads["sparse_head"]["prototypes"],
        cls_prototypes=heads["cls_head"]["prototypes"],
    )
    return balance(jax.lax.stop_gradient(source), spec)


def loss_and_gradients(
    params: dict,
    model: Stellar,
    spec: LossSpec,
    batch: Batch,
    view: Callable[[Batch], Views],
    teacher: dict | None,
    tokenizer: dict | None,
    microbatches: int,
):
    """Total, terms and gradients of the global batch.

    With microbatches, a first pass computes the Sinkhorn potentials of the whole batch, so that the result
    equals that of a single pass up to rounding. (DEVIATION: the published accumulation balances each part on
    its own, which changes the objective; loss.balance_over="microbatch" does that.)

    Args:
        params, model, spec, teacher, tokenizer: as in `loss_fn`.
        batch: Batch of B images. view: Batch -> Views. microbatches: parts, a divisor of B.

    Returns:
        (total, terms, gradients).
    """
    gradient = jax.value_and_grad(loss_fn, has_aux=True)
    if microbatches == 1:
        (total, (terms, _, _)), gradients = gradient(
            params, model, spec, view(batch), teacher, tokenizer, None
        )
        return total, terms, gradients
    parts = split_batch(batch, microbatches)
    potentials = None
    if spec.balance_over == "batch":
        potentials = global_potentials(params, model, spec, parts, view, teacher)

    def one(part: Batch):
        (total, (terms, _, _)), gradients = gradient(
            params, model, spec, view(part), teacher, tokenizer, potentials
        )
        return total, terms, gradients

    def accumulate(total, part):
        return jax.tree.map(jnp.add, total, one(part)), None

    shapes = jax.eval_shape(one, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    summed, _ = jax.lax.scan(accumulate, zeros, parts)
    return jax.tree.map(lambda x: x / microbatches, summed)
