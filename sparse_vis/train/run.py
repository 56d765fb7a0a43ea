"""What `main.py` does: train a configuration in a workdir, then the evaluations it names."""

from __future__ import annotations

import pathlib

import jax
import numpy as np
from ml_collections import ConfigDict

from sparse_vis.build import build_model
from sparse_vis.models.stellar import init_params
from sparse_vis.train.loop import Run


def run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Train to the end, or continue, and evaluate when training is complete.

    Args:
        config: complete configuration. workdir: folder of the run.

    Raises:
        UserError: anything the user can mend.
    """
    training = Run(config, workdir)
    training.train()
    if training.step < config.train.steps or "scenes" not in config.eval.tasks or not training.main:
        return
    from sparse_vis.evals import scenes

    model = build_model(config)
    weights = {
        "untrained": init_params(model, jax.random.key(config.seed)),
        "trained": jax.tree.map(np.asarray, training.state.params),
    }
    print(scenes.table(scenes.evaluate(model, weights, config, workdir)), flush=True)
    print(f"\n{workdir}/evaluation.json has these numbers, {workdir}/localization.png the token maps.", flush=True)
