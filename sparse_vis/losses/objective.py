"""The weighted total loss and its named terms, from outputs and targets (docs/method.md section 6)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sparse_vis.losses.clustering import matched_targets, prototype_cross_entropy
from sparse_vis.losses.inpainting import hidden_mse
from sparse_vis.losses.koleo import koleo
from sparse_vis.losses.reconstruction import code_cross_entropy, pixel_mse
from sparse_vis.losses.spec import LossSpec
from sparse_vis.ops.prototypes import expected_prototype, streamed_logsumexp
from sparse_vis.ops.sinkhorn import row_mass
from sparse_vis.types import Outputs, Targets


def expectation(
    x: Float[Array, "B r D"], prototypes: Array, potentials: Array, values: Array, spec: LossSpec
) -> tuple[Float[Array, "B r D"], Float[Array, "B r 1"]]:
    """T W^T for the Sinkhorn target T of each row, and the row sums of T.

    Args:
        x: embeddings from which targets are made. prototypes: (D, K) that belong to them.
        potentials: (rounds, K) of Sinkhorn. values: (D, K), W, the student's prototypes. spec: settings.

    Returns:
        (B, r, D) T W^T, with gradient in `values` alone; (B, r, 1) row sums.
    """
    rows, how = x.reshape(-1, x.shape[-1]), (spec.sinkhorn_temperature, spec.prototype_chunk)
    expected = expected_prototype(rows, prototypes, how[0], potentials[-1], values, how[1])
    mass = jnp.ones(rows.shape[:1], jnp.float32)
    if spec.sinkhorn_epsilon and spec.sinkhorn_iterations:
        log_sums = [streamed_logsumexp(rows, prototypes, how[0], g, how[1]) for g in potentials]
        mass = row_mass(jnp.stack(log_sums), spec.sinkhorn_epsilon)
    mass = jax.lax.stop_gradient(mass)[:, None]
    return (mass * expected).reshape(x.shape), mass.reshape(*x.shape[:-1], 1)


def sparse_terms(outputs: Outputs, targets: Targets, spec: LossSpec) -> dict[str, Array]:
    """Unweighted terms of S: token_clustering (image) and set_alignment (masked views).

    Terms with weight zero are absent.
    """
    source, W = targets.source, outputs.sparse_prototypes
    expected = expectation(source.sparse, source.sparse_prototypes, targets.potentials.sparse, W, spec)
    students = {
        "token_clustering": (outputs.sparse[:, None], targets.image_match[:, None]),
        "set_alignment": (outputs.masked_sparse, targets.masked_match),
    }
    return {
        name: prototype_cross_entropy(
            x, *(matched_targets(part, match) for part in expected), W, spec.student_temperature,
            spec.prototype_chunk,
        )
        for name, (x, match) in students.items()
        if getattr(spec, name)
    }  # fmt: skip


def cls_terms(outputs: Outputs, targets: Targets, spec: LossSpec) -> dict[str, Array]:
    """Unweighted terms of CLS: cls_clustering (image), cls_masked and cls_local (views).

    Terms with weight zero are absent.
    """
    source, W = targets.source, outputs.cls_prototypes
    expected = expectation(source.cls, source.cls_prototypes, targets.potentials.cls, W, spec)
    students = {
        "cls_clustering": outputs.cls, "cls_masked": outputs.masked_cls, "cls_local": outputs.local_cls,
    }  # fmt: skip
    return {
        name: prototype_cross_entropy(
            x, *(jnp.broadcast_to(part, (*x.shape[:-1], part.shape[-1])) for part in expected), W,
            spec.student_temperature, spec.prototype_chunk,
        )
        for name, x in students.items()
        if getattr(spec, name)
    }  # fmt: skip


def objective(
    outputs: Outputs, targets: Targets, spec: LossSpec
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Weighted total and its unweighted terms, each a mean over the batch.

    Args:
        outputs: the student's Outputs. targets: Targets. spec: weights and temperatures.

    Returns:
        (total, terms): float32 scalars; terms with weight zero are absent and cost nothing.
    """
    terms = {}
    if spec.reconstruction:
        codes = targets.reconstruction.ndim == 2
        loss = code_cross_entropy if codes else pixel_mse
        terms["reconstruction"] = loss(outputs.reconstruction, targets.reconstruction)
    if spec.uses_sparse_targets:
        terms |= sparse_terms(outputs, targets, spec)
    if spec.uses_cls_targets:
        terms |= cls_terms(outputs, targets, spec)
    if spec.koleo_image:
        terms["koleo_image"] = koleo(outputs.tokens.S)
    if spec.koleo_masked:
        terms["koleo_masked"] = koleo(outputs.masked_S)
    if spec.inpainting:
        patches = outputs.tokens.U.shape[1]
        terms["inpainting"] = hidden_mse(outputs.inpainted, targets.masked, targets.visible, patches)
    total = sum(
        (getattr(spec, name) * value for name, value in terms.items()), start=jnp.zeros((), jnp.float32)
    )
    return total, terms
