"""The Recipe: all that is fixed about a run's step, built from a configuration."""

import dataclasses
import functools
from collections.abc import Callable

import optax
from ml_collections import ConfigDict

from sparse_vis.build import build_loss, build_model, build_views
from sparse_vis.losses.objective import objective
from sparse_vis.losses.spec import LossSpec
from sparse_vis.losses.targets import make_targets
from sparse_vis.models.stellar import Stellar
from sparse_vis.models.vqgan import VQGAN
from sparse_vis.train.optimizer import learning_rate, make_optimizer, momentum_at
from sparse_vis.views.make import ViewSpec


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What does not change from step to step."""

    model: Stellar
    loss: LossSpec
    views: ViewSpec
    optimizer: optax.GradientTransformation
    schedule: optax.Schedule  # its learning rate
    microbatches: int  # parts of the global batch
    momentum: Callable | None  # step -> momentum of the EMA teacher; None: no teacher
    objective: Callable  # (outputs, targets, loss) -> (total, terms)
    targets: Callable = make_targets  # what the outputs are compared with


def build_recipe(config: ConfigDict, tokenizer: VQGAN | None = None) -> Recipe:
    """The Recipe of a complete configuration; `tokenizer` is the module for the VQ target."""
    o, t = dict(config.optimizer), config.teacher
    rates = {name: o.pop(name) for name in ("peak_lr", "final_lr", "warmup", "schedule")}
    schedule = learning_rate(**rates, steps=config.train.steps)
    how = dict(steps=config.train.steps, first=t.momentum, final=t.final_momentum)
    return Recipe(
        model=build_model(config, tokenizer),
        loss=build_loss(config),
        views=build_views(config),
        optimizer=make_optimizer(schedule, **o),
        schedule=schedule,
        microbatches=config.efficiency.microbatches,
        objective=objective,
        momentum=functools.partial(momentum_at, **how) if t.enabled else None,
    )
