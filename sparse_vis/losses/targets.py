"""Targets of the student: matches, Sinkhorn potentials, reconstruction; all under stop_gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sparse_vis.losses.spec import LossSpec
from sparse_vis.ops.matching import entropic_match, exact_match
from sparse_vis.ops.sinkhorn import column_potentials, published_potentials
from sparse_vis.types import Outputs, Potentials, Targets, TargetSource, Views


def own_source(outputs: Outputs) -> TargetSource:
    """The student's own embeddings of the image as source of the targets (main recipe, no teacher)."""
    return TargetSource(
        S=outputs.tokens.S, sparse=outputs.sparse, cls=outputs.cls,
        sparse_prototypes=outputs.sparse_prototypes, cls_prototypes=outputs.cls_prototypes,
    )  # fmt: skip


def balance(source: TargetSource, spec: LossSpec) -> Potentials:
    """Sinkhorn potentials of both heads over all rows of `source`.

    Args:
        source: TargetSource of the global batch, or of a microbatch.
        spec: loss settings. A head that no term uses gets zeros, as do both with sinkhorn_iterations=0.

    Returns:
        Potentials.
    """

    def one(used: bool, x: Array, prototypes: Array) -> Array:
        if not used or spec.sinkhorn_iterations == 0:
            return jnp.zeros((1, prototypes.shape[1]), jnp.float32)
        scores = jax.lax.stop_gradient(x.reshape(-1, x.shape[-1]) @ prototypes)
        how = (spec.sinkhorn_temperature, spec.sinkhorn_iterations)
        if spec.sinkhorn_epsilon:
            return published_potentials(scores, *how, spec.sinkhorn_epsilon)
        return column_potentials(scores, *how)[None]

    return Potentials(
        sparse=one(spec.uses_sparse_targets, source.sparse, source.sparse_prototypes),
        cls=one(spec.uses_cls_targets, source.cls, source.cls_prototypes),
    )


def match_tokens(
    S: Float[Array, "N r d"], target_S: Float[Array, "N r d"], spec: LossSpec
) -> Int[Array, "N r"]:
    """For each token of S the index of its target token, by the matching of spec.matching."""
    S, target_S = jax.lax.stop_gradient((S, target_S))
    if spec.matching == "exact":
        return exact_match(S, target_S)
    return entropic_match(S, target_S, spec.match_epsilon, spec.match_iterations)


def make_targets(
    outputs: Outputs,
    source: TargetSource,
    potentials: Potentials,
    views: Views,
    spec: LossSpec,
    *,
    teacher: bool,
    codes: Int[Array, "B n"] | None = None,
) -> Targets:
    """Targets of one batch.

    Args:
        outputs: the student's Outputs. source: embeddings of the student itself or of the teacher.
        potentials: from `balance`, of the global batch or of this part. views: Views that gave `outputs`.
        spec: loss settings. teacher: whether `source` is the teacher's; the image's tokens are then matched
            too.
        codes: (B, n) of the image, for the VQ target; None for pixels.

    Returns:
        Targets, without gradient.
    """
    batch, count = source.S.shape[:2]
    masked_views = outputs.masked_S.shape[1]
    own = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32), (batch, count))
    repeated = jnp.repeat(source.S, masked_views, axis=0)
    masked = match_tokens(outputs.masked_S.reshape(repeated.shape), repeated, spec)
    targets = Targets(
        source=source,
        potentials=potentials,
        image_match=match_tokens(outputs.tokens.S, source.S, spec) if teacher else own,
        masked_match=masked.reshape(batch, masked_views, count),
        reconstruction=views.image if codes is None else codes,
        masked=views.masked,
        visible=views.visible,
    )
    return jax.lax.stop_gradient(targets)
