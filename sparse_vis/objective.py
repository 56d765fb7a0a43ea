"""Outputs and targets to the weighted total and its named terms (method.md section 6)."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from sparse_vis.losses.alignment import matched_targets
from sparse_vis.losses.clustering import prototype_cross_entropy
from sparse_vis.losses.koleo import koleo
from sparse_vis.losses.reconstruction import code_cross_entropy, pixel_mse
from sparse_vis.losses.spec import LossSpec
from sparse_vis.ops.prototypes import expected_prototype
from sparse_vis.types import Outputs, Targets


def sparse_terms(outputs: Outputs, targets: Targets, spec: LossSpec) -> dict[str, Array]:
    """Clustering of the image's S and alignment of the masked views' S, unweighted."""
    source, W = targets.source, outputs.sparse_prototypes
    expected = expected_prototype(
        source.sparse.reshape(-1, W.shape[0]), source.sparse_prototypes, spec.sinkhorn_temperature,
        targets.potentials.sparse, W, spec.prototype_chunk,
    ).reshape(source.sparse.shape)  # fmt: skip
    terms = {}
    if spec.token_clustering:
        target = matched_targets(expected, targets.image_match[:, None])[:, 0]
        terms["token_clustering"] = prototype_cross_entropy(
            outputs.sparse, target, W, spec.student_temperature, spec.prototype_chunk
        )
    if spec.set_alignment:
        target = matched_targets(expected, targets.masked_match)
        terms["set_alignment"] = prototype_cross_entropy(
            outputs.masked_sparse, target, W, spec.student_temperature, spec.prototype_chunk
        )
    return terms


def cls_terms(outputs: Outputs, targets: Targets, spec: LossSpec) -> dict[str, Array]:
    """Clustering of the image's CLS, alignment of the masked and local views' CLS, unweighted."""
    source, W = targets.source, outputs.cls_prototypes
    expected = expected_prototype(
        source.cls[:, 0], source.cls_prototypes, spec.sinkhorn_temperature, targets.potentials.cls, W,
        spec.prototype_chunk,
    )[:, None]  # fmt: skip
    students = {
        "cls_clustering": outputs.cls, "cls_masked": outputs.masked_cls, "cls_local": outputs.local_cls,
    }  # fmt: skip
    return {
        name: prototype_cross_entropy(
            x, jnp.broadcast_to(expected, x.shape), W, spec.student_temperature, spec.prototype_chunk
        )
        for name, x in students.items()
        if getattr(spec, name)
    }


def objective(
    outputs: Outputs, targets: Targets, spec: LossSpec
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Weighted total and its unweighted terms, every one a mean over the batch.

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
    total = sum((getattr(spec, name) * value for name, value in terms.items()), start=jnp.zeros(()))
    return total, terms
