"""What `main.py` does: train a configuration in a workdir, then the evaluations it names."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable

import jax
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from sparse_vis.build import build_model
from sparse_vis.errors import UserError
from sparse_vis.interop.maskgit import load_tokenizer
from sparse_vis.models.stellar import init_params
from sparse_vis.models.vqgan import VQGAN
from sparse_vis.train import settings
from sparse_vis.train.loop import Run
from sparse_vis.train.stop import StopSignal


def run(config: ConfigDict, workdir: pathlib.Path, stop: StopSignal) -> None:
    """Train to the end, or continue, and evaluate when training is complete.

    Args:
        config: complete configuration. workdir: folder of the run. stop: noticed after every step.

    Raises:
        UserError: anything the user can mend.
    """
    settings.check(config)
    training = Run(config, workdir, initial=initial_weights(config), tokenizer=read_tokenizer(config))
    training.train(stop)
    stop.message = (
        "SIGTERM in the evaluation: training is complete and saved; the same command evaluates again."
    )
    stop.keep = False
    if stop.received:
        print(f"SIGTERM: saved step {training.step} in {workdir}; the same command continues.", flush=True)
    elif "scenes" in config.eval.tasks:
        params = multihost_utils.process_allgather(training.state.params, tiled=True)
        if jax.process_count() > 1:
            jax.distributed.shutdown()  # the others are done; process 0 evaluates alone
            stop.listen()  # SIGTERM was jax.distributed's until here
        if training.main:
            evaluate(config, workdir, params)


def initial_weights(config: ConfigDict) -> Callable[[], dict] | None:
    """Reads the parameters that config.init names when called; None for a random start."""
    if not config.init:
        return None
    from sparse_vis.train.init import initial_params

    return functools.partial(initial_params, config)


def read_tokenizer(config: ConfigDict) -> tuple[VQGAN, dict] | None:
    """Module and parameters of the VQ target's tokenizer; None for the pixel target.

    Raises:
        UserError: no file is named, or it cannot be read.
    """
    if config.model.target != "vq":
        return None
    if not config.model.tokenizer.path:
        raise UserError(
            "config.model.target=vq needs --config.model.tokenizer.path=FILE with MaskGIT-VQGAN weights."
        )
    module, params = load_tokenizer(config.model.tokenizer.path, config.model.tokenizer.dtype)
    if module.num_embeddings != config.model.tokenizer.codes:
        raise UserError(
            f"{config.model.tokenizer.path} has {module.num_embeddings} codes; "
            f"set config.model.tokenizer.codes={module.num_embeddings}."
        )
    return module, params


def evaluate(config: ConfigDict, workdir: pathlib.Path, params: dict) -> None:
    """The evaluation on scenes of trained parameters, in host memory."""
    from sparse_vis.evals import scenes

    model = build_model(config)
    weights = {
        "untrained": init_params(model, jax.random.key(config.seed)),
        "trained": params,
    }
    print(scenes.table(scenes.evaluate(model, weights, config, workdir)), flush=True)
    files = f"{workdir}/evaluation.json has these numbers, {workdir}/localization.png the token maps."
    print(f"\n{files}", flush=True)
