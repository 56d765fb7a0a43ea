"""Measures of S, L, prototypes and matches on fixed images, and warnings of collapse."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from sparse_vis.losses.targets import make_targets
from sparse_vis.ops.sinkhorn import column_error
from sparse_vis.runtime.progress import say
from sparse_vis.train.recipe import Recipe
from sparse_vis.train.step import TrainState, step_key
from sparse_vis.types import Batch
from sparse_vis.views.make import make_views

REMEDIES = (
    "Usual remedies: a lower config.optimizer.peak_lr or a longer warmup, all alignment and KoLeo terms on, "
    "config.teacher.enabled=True, a larger batch, fewer prototypes, or weights to start from (config.init)."
)


def effective_rank(x: Float[Array, "*sets rows d"]) -> Float[Array, "*sets"]:
    """(tr C)^2 / tr(C^2) of the centred rows' covariance C: from 1 to min(rows - 1, d)."""
    x = x - jnp.mean(x, axis=-2, keepdims=True)
    C = jnp.swapaxes(x, -1, -2) @ x if x.shape[-1] < x.shape[-2] else x @ jnp.swapaxes(x, -1, -2)
    return jnp.trace(C, axis1=-2, axis2=-1) ** 2 / jnp.maximum(jnp.sum(C**2, axis=(-2, -1)), 1e-30)


def entropy(p: Float[Array, "*rows k"]) -> Float[Array, "*rows"]:
    """Entropy of distributions along the last axis, in nats."""
    return jnp.sum(jnp.where(p > 0, -p * jnp.log(jnp.maximum(p, 1e-30)), 0), axis=-1)


def spread(x: Float[Array, "B r D"]) -> Float[Array, " r"]:
    """Variance over images of each token's unit vectors, 1 - |mean|^2; NaN for a single image."""
    if len(x) == 1:
        return jnp.full(x.shape[1], jnp.nan)
    # This form is more accurate for small spreads.
    return jnp.mean(jnp.sum((x - jnp.mean(x, axis=0)) ** 2, axis=-1), axis=0)


def token_measures(S: Float[Array, "B r d"]) -> dict[str, Float[Array, ""]]:
    """Effective rank of all tokens of the batch, and of the tokens of one image (mean over images)."""
    whole, each = effective_rank(S.reshape(-1, S.shape[-1])), effective_rank(S)
    return {"S_rank": whole, "S_rank_in_image": jnp.mean(each)}


def localization_measures(L: Float[Array, "B n r"]) -> dict[str, Float[Array, ""]]:
    """Largest and smallest singular value of L / sqrt(n), entropy of L's rows / log r, and coverage: the
    share of tokens that have the largest weight in some patch."""
    n, r = L.shape[1:]
    squares = jnp.linalg.eigvalsh(jnp.swapaxes(L, 1, 2) @ L / n)
    singular = jnp.mean(jnp.sqrt(jnp.maximum(squares, 0)), axis=0)
    wins = jnp.any(jnp.argmax(L, axis=-1)[..., None] == jnp.arange(r), axis=1)
    return {
        "L_singular_largest": singular[-1],
        "L_singular_smallest": singular[0],
        "L_entropy": jnp.mean(entropy(L)) / jnp.log(r),
        "L_coverage": jnp.mean(wins),
    }


def prototype_measures(scores: Float[Array, "rows K"]) -> dict[str, Float[Array, ""]]:
    """Share of prototypes that some row scores highest, and the entropy of these choices; both relative to
    their maximum, as at most min(rows, K) prototypes can be chosen."""
    rows, count = scores.shape
    wins = jnp.zeros(count, jnp.float32).at[jnp.argmax(scores, axis=-1)].add(1)
    most = min(rows, count)
    return {
        "prototype_usage": jnp.sum(wins > 0, dtype=jnp.float32) / most,
        "prototype_entropy": entropy(wins / rows) / jnp.log(most),
    }


def measure(
    recipe: Recipe, params: dict, teacher: dict | None, batch: Batch, previous: Array, seed: int | Array = 0
) -> tuple[dict[str, Array], Array]:
    """Health measures by name, and the matches of masked views (B, Vg, r), which are `previous` next time.

    The batch and its views (those of step 0) are the same each time, so that steps can be compared.
    `S_spread` and `cls_spread` are of the heads' embeddings. `match_changed` is the share of tokens whose
    match differs from `previous`. `sinkhorn_error` is the total variation distance between the use of
    prototypes in the targets and equal use.
    """
    views, spec = make_views(step_key(seed, 0), batch, recipe.views), recipe.loss
    outputs = recipe.model.apply({"params": params}, views)
    targets = make_targets(recipe.model, spec, views, outputs, teacher)
    own, source = outputs.embeddings, targets.embeddings
    scores, teacher_scores = (x.S.reshape(-1, x.S.shape[-1]) @ x.S_prototypes for x in (own, source))
    measures = {
        "cls_spread": jnp.mean(spread(own.cls)),
        "S_spread": jnp.mean(spread(own.S)),
        **token_measures(outputs.tokens.S.astype(jnp.float32)),
        **localization_measures(outputs.factors.L),
        **prototype_measures(scores),
        "sinkhorn_error": column_error(teacher_scores, targets.potentials.S[-1], spec.sinkhorn_temperature),
        "match_changed": jnp.mean(targets.masked_match != previous),
    }
    return measures, targets.masked_match


def complaints(measures: Mapping[str, float | int], tokens: int) -> dict[str, str]:
    """Name -> meaning of each measure that indicates collapse; `tokens`: number of the model's tokens."""
    limits = {
        "prototype_entropy": (0.05, "nearly all tokens choose the same prototype"),
        "cls_spread": (1e-5, "CLS is the same for every image"),
    }
    if tokens > 1:  # with one token, coverage is always 1; with two, the centred rank is always 1
        limits["L_coverage"] = (1.2 / tokens, "one token covers the whole of every image")
    if tokens > 2:
        limits["S_rank_in_image"] = (1 + 0.1 * (tokens - 2), "the tokens of an image are nearly alike")
    return {name: meaning for name, (low, meaning) in limits.items() if measures.get(name, math.inf) < low}


class HealthCheck:
    """Measures health on the same images each time, and warns when a run has collapsed.

    Args:
        batch: global, on the mesh. seed: of the run.
        every: steps between measurements. step: of the last row of metrics.
        matches: of the last measurement of a continued run, as nested lists; None, or of another shape if the
            batch size has changed, means that there are none.

    Attributes:
        due: the first row of metrics at or after this step includes a measurement.
    """

    def __init__(
        self,
        recipe: Recipe,
        mesh: Mesh,
        batch: Batch,
        seed: Array,
        every: int,
        step: int,
        matches: list | None = None,
    ):
        everywhere = NamedSharding(mesh, PartitionSpec())
        shape = (len(batch.index), recipe.views.global_count, recipe.model.encoder.queries)
        self.batch, self.complaints, self.said = batch, {}, set()
        self.known = matches is not None and np.shape(matches) == shape
        start = np.array(matches, np.int32) if self.known else np.full(shape, -1, np.int32)
        self.matches = jax.device_put(start, everywhere)
        self.every, self.due = every, (step // every + 1) * every

        def on_mesh(*arguments):
            with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # for the blocks' `batch_sharded`
                return measure(recipe, *arguments)

        self.seed, self.measure = seed, jax.jit(on_mesh, out_shardings=everywhere)

    def __call__(self, step: int, state: TrainState) -> dict[str, float]:
        """The finite measures, named `health/NAME`; warns of a collapse seen twice in a row."""
        self.due = (step // self.every + 1) * self.every
        found, self.matches = self.measure(state.params, state.teacher, self.batch, self.matches, self.seed)
        measures = {name: float(x) for name, x in found.items() if math.isfinite(x)}
        if not self.known:
            measures.pop("match_changed", None)
        now = complaints(measures, self.matches.shape[-1])
        lasting = [name for name in now if name in self.complaints and name not in self.said]
        if lasting:
            meanings = ", ".join(f"{now[name]} ({name} {measures[name]:.2g})" for name in lasting)
            say(f"warning: collapse at step {step}: {meanings}. {REMEDIES}")
        self.said, self.complaints, self.known = self.said | set(lasting), now, True
        return {f"health/{name}": value for name, value in measures.items()}
