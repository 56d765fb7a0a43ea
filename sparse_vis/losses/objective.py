"""The weighted total loss and its named terms, from outputs and targets (docs/method.md section 6)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sparse_vis.losses.clustering import matched_targets, prototype_cross_entropy
from sparse_vis.losses.koleo import koleo
from sparse_vis.losses.reconstruction import code_cross_entropy, pixel_mse
from sparse_vis.losses.spec import LossSpec
from sparse_vis.ops.prototypes import expected_prototype, streamed_logsumexp
from sparse_vis.ops.sinkhorn import row_mass
from sparse_vis.types import Outputs, Targets


def objective(
    outputs: Outputs, targets: Targets, spec: LossSpec
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Weighted total, and name -> unweighted term, each a float32 mean over the batch.

    Terms of weight zero are absent and cost nothing.
    """
    terms = {}
    if spec.reconstruction:
        loss = code_cross_entropy if targets.reconstruction.ndim == 2 else pixel_mse
        terms["reconstruction"] = loss(outputs.reconstruction, targets.reconstruction)
    if spec.uses_S_targets:
        terms |= S_terms(outputs, targets, spec)
    if spec.uses_cls_targets:
        terms |= cls_terms(outputs, targets, spec)
    if spec.koleo_image:
        terms["koleo_image"] = koleo(outputs.tokens.S)
    if spec.koleo_masked:
        terms["koleo_masked"] = koleo(outputs.masked_S)
    weighted = (getattr(spec, name) * value for name, value in terms.items())
    return sum(weighted, start=jnp.zeros((), jnp.float32)), terms


def S_terms(outputs: Outputs, targets: Targets, spec: LossSpec) -> dict[str, Array]:
    """Unweighted terms of S: token_clustering (image) and set_alignment (masked views)."""
    source, W = targets.embeddings, outputs.embeddings.S_prototypes
    expected = expectation(source.S, source.S_prototypes, targets.potentials.S, W, spec)
    students = {
        "token_clustering": (outputs.embeddings.S[:, None], targets.image_match[:, None]),
        "set_alignment": (outputs.masked_S_embedding, targets.masked_match),
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
    """Unweighted terms of CLS: cls_clustering (image), cls_masked and cls_local (views)."""
    source, W = targets.embeddings, outputs.embeddings.cls_prototypes
    expected = expectation(source.cls, source.cls_prototypes, targets.potentials.cls, W, spec)
    students = {
        "cls_clustering": outputs.embeddings.cls,
        "cls_masked": outputs.masked_cls_embedding,
        "cls_local": outputs.local_cls_embedding,
    }
    return {
        name: prototype_cross_entropy(
            x, *(jnp.broadcast_to(part, (*x.shape[:-1], part.shape[-1])) for part in expected), W,
            spec.student_temperature, spec.prototype_chunk,
        )
        for name, x in students.items()
        if getattr(spec, name)
    }  # fmt: skip


def expectation(
    x: Float[Array, "B r D"], prototypes: Array, potentials: Array, values: Array, spec: LossSpec
) -> tuple[Float[Array, "B r D"], Float[Array, "B r 1"]]:
    """T W^T for the Sinkhorn target T of each row, and the row sums of T; only W gets a gradient.

    Args:
        x: embeddings from which targets are made. prototypes: (D, K), of the network that made x.
        potentials: (rounds, K) of Sinkhorn. values: (D, K), W, the student's prototypes.
    """
    rows, how = x.reshape(-1, x.shape[-1]), (spec.sinkhorn_temperature, spec.prototype_chunk)
    expected = expected_prototype(rows, prototypes, how[0], potentials[-1], values, how[1])
    mass = jnp.ones(rows.shape[:1], jnp.float32)
    if spec.sinkhorn_epsilon and spec.sinkhorn_iterations:
        log_sums = [streamed_logsumexp(rows, prototypes, how[0], g, how[1]) for g in potentials]
        mass = row_mass(jnp.stack(log_sums), spec.sinkhorn_epsilon)
    mass = jax.lax.stop_gradient(mass)[:, None]
    return (mass * expected).reshape(x.shape), mass.reshape(*x.shape[:-1], 1)
