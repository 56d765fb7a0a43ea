"""Weights of the loss terms and constants of the targets, as plain numbers."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class LossSpec:
    """The settings of config.loss (docs/method.md sections 5 and 6; defaults in config/defaults.py).

    A term of weight zero is not computed. sinkhorn_epsilon is added to Sinkhorn's sums: the published 1e-8
    shrinks target rows whose scores are far below every column's maximum. prototype_chunk, the number of
    prototypes in memory at a time, changes no result.
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
