"""Everything static about a run's step, and how it is built from a configuration."""

from __future__ import annotations

import dataclasses

import jax
import optax
from ml_collections import ConfigDict

from sparse_vis.build import build_loss, build_model, build_views
from sparse_vis.losses.spec import LossSpec
from sparse_vis.models.stellar import Stellar
from sparse_vis.train.optimizer import learning_rate, make_optimizer
from sparse_vis.views.make import ViewSpec


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Everything static about a run's step; only the seed may be traced, so that all seeds share a program.

    Attributes:
        model, loss, views: what is computed. optimizer: optax optimizer. schedule: its learning rate.
        steps: of the run. seed: of all randomness. microbatches: parts of the global batch.
        use_teacher, momentum, final_momentum: of the EMA teacher.
    """

    model: Stellar
    loss: LossSpec
    views: ViewSpec
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule
    steps: int
    seed: int | jax.Array
    microbatches: int
    use_teacher: bool
    momentum: float
    final_momentum: float


def build_recipe(config: ConfigDict) -> Recipe:
    """The Recipe of a complete configuration."""
    o = dict(config.optimizer)
    rates = {name: o.pop(name) for name in ("peak_lr", "final_lr", "warmup", "schedule")}
    schedule = learning_rate(**rates, steps=config.train.steps)
    return Recipe(
        model=build_model(config),
        loss=build_loss(config),
        views=build_views(config),
        optimizer=make_optimizer(schedule, **o),
        schedule=schedule,
        steps=config.train.steps,
        seed=config.seed,
        microbatches=config.efficiency.microbatches,
        use_teacher=config.teacher.enabled,
        momentum=config.teacher.momentum,
        final_momentum=config.teacher.final_momentum,
    )
