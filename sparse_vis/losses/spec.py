"""Weights of the loss terms and constants of the targets, as plain numbers."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class LossSpec:
    """Weights of the terms and constants of the targets; a weight of zero is static and skips the term.

    Attributes:
        reconstruction: 10 for pixels, 0.05 for VQ codes.
        token_clustering, cls_clustering, set_alignment, cls_masked, cls_local: weights, published 1.
        koleo_image, koleo_masked: weights, published 0.1.
        student_temperature, sinkhorn_temperature: published 0.12 and 0.06.
        sinkhorn_iterations: published 3; 0 gives plain softmax targets.
        sinkhorn_epsilon: added to Sinkhorn's sums. Default 0; published 1e-8, which shrinks target rows whose
            scores are far below every column's maximum.
        balance_over: Sinkhorn over the global "batch", or over each "microbatch" as in the published gradient
            accumulation.
        matching: "entropic" (published) or "exact" (one to one).
        match_epsilon, match_iterations: of the entropic matching; published 0.1 and 5.
        prototype_chunk: prototypes held in memory at a time; changes no result.
    """

    reconstruction: float
    token_clustering: float
    cls_clustering: float
    set_alignment: float
    cls_masked: float
    cls_local: float
    koleo_image: float
    koleo_masked: float
    student_temperature: float
    sinkhorn_temperature: float
    sinkhorn_iterations: int
    sinkhorn_epsilon: float
    balance_over: str
    matching: str
    match_epsilon: float
    match_iterations: int
    prototype_chunk: int

    @property
    def uses_S_targets(self) -> bool:
        return bool(self.token_clustering or self.set_alignment)

    @property
    def uses_cls_targets(self) -> bool:
        return bool(self.cls_clustering or self.cls_masked or self.cls_local)
