"""Targets of the student: matches, Sinkhorn potentials, reconstruction; all under stop_gradient."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sparse_vis.losses.spec import LossSpec
from sparse_vis.models.stellar import Stellar
from sparse_vis.ops.matching import entropic_match, exact_match
from sparse_vis.ops.sinkhorn import column_potentials, published_potentials
from sparse_vis.types import Embeddings, Outputs, Potentials, Targets, Views


def balance(embeddings: Embeddings, spec: LossSpec) -> Potentials:
    """Sinkhorn potentials of both heads over all rows; zeros for an unused head, or for no iterations."""

    def one(used: bool, x: Array, prototypes: Array) -> Array:
        if not used or spec.sinkhorn_iterations == 0:
            return jnp.zeros((1, prototypes.shape[1]), jnp.float32)
        scores = jax.lax.stop_gradient(x.reshape(-1, x.shape[-1]) @ prototypes)
        how = (spec.sinkhorn_temperature, spec.sinkhorn_iterations)
        if spec.sinkhorn_epsilon:
            return published_potentials(scores, *how, spec.sinkhorn_epsilon)
        return column_potentials(scores, *how)[None]

    return Potentials(
        S=one(spec.uses_S_targets, embeddings.S, embeddings.S_prototypes),
        cls=one(spec.uses_cls_targets, embeddings.cls, embeddings.cls_prototypes),
    )


def match_tokens(
    S: Float[Array, "N r d"], target_S: Float[Array, "N r d"], spec: LossSpec
) -> Int[Array, "N r"]:
    """For each token of S, the index of its target token; spec.matching says how they are matched."""
    S, target_S = jax.lax.stop_gradient((S, target_S))
    if spec.matching == "exact":
        return exact_match(S, target_S)
    return entropic_match(S, target_S, spec.match_epsilon, spec.match_iterations)


def make_targets(
    model: Stellar,
    spec: LossSpec,
    views: Views,
    outputs: Outputs,
    teacher: dict | None = None,
    tokenizer: dict | None = None,
    potentials: Potentials | None = None,
) -> Targets:
    """Targets of one batch, without gradient.

    Args:
        views: the batch. outputs: the student's, of these views.
        teacher: EMA parameters. Targets come from the teacher's embeddings of the second global view, and the
            image's tokens are matched to the teacher's. None: from the student's embeddings of the image.
        tokenizer: frozen parameters, for the codes of the VQ target; None for the pixel target.
        potentials: of the global batch, if `views` is a part of it; None: computed from this batch.
    """
    tokens, embeddings = outputs.tokens, outputs.embeddings
    if teacher is not None:
        tokens, embeddings = model.apply({"params": teacher}, views.masked[:, 1], method="embed")
    reconstruction = views.image
    if tokenizer is not None:
        reconstruction = model.apply({"params": {"tokenizer": tokenizer}}, views.image, method="codes")
    potentials = potentials or balance(embeddings, spec)
    S = tokens.S
    own = jnp.broadcast_to(jnp.arange(S.shape[1], dtype=jnp.int32), S.shape[:2])
    repeated = jnp.repeat(S, outputs.masked_S.shape[1], axis=0)
    masked = match_tokens(outputs.masked_S.reshape(repeated.shape), repeated, spec)
    targets = Targets(
        embeddings=embeddings,
        potentials=potentials,
        image_match=own if teacher is None else match_tokens(outputs.tokens.S, S, spec),
        masked_match=masked.reshape(outputs.masked_S.shape[:3]),
        reconstruction=reconstruction,
    )
    return jax.lax.stop_gradient(targets)
