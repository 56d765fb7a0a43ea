"""The run: restore or start, step by step, report, save, stop on a signal or on bad numbers."""

from __future__ import annotations

import functools
import json
import math
import pathlib
import signal
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from sparse_vis.build import build_recipe, build_source
from sparse_vis.data.loader import train_batches
from sparse_vis.errors import UserError
from sparse_vis.train import checkpoint, settings
from sparse_vis.train.mesh import BATCH, global_batch, make_mesh, state_sharding
from sparse_vis.train.progress import Progress
from sparse_vis.train.step import Recipe, TrainState, initial_state, train_step

# On few cores, a long queue of dispatched steps can deadlock XLA's thread pool on CPU.
LONGEST_QUEUE = 16


class StopSignal:
    """Notices SIGTERM, on this process or, with several, on any of them."""

    def __init__(self):
        self.received = False
        self.several = jax.process_count() > 1
        if not self.several:
            signal.signal(signal.SIGTERM, self._handle)

    def _handle(self, *_):
        self.received = True

    def at(self, step: int) -> bool:
        """Whether the run shall save and stop at this step; the same answer on all processes."""
        return multihost_utils.reached_preemption_sync_point(step) if self.several else self.received


def compile_step(recipe: Recipe, mesh, state: TrainState, tokenize: Callable | None):
    """The jitted step with its placement fixed and the old state's memory reused."""
    sharding = state_sharding(mesh, state)
    return jax.jit(
        functools.partial(train_step, recipe, tokenize=tokenize),
        in_shardings=(sharding, NamedSharding(mesh, BATCH)),
        out_shardings=(sharding, NamedSharding(mesh, PartitionSpec())),
        donate_argnums=0,
    )


def first_bad(window: list[dict], first: int) -> tuple[int, str] | None:
    """Step and name of the first non-finite number in a window that starts at step `first`."""
    for offset, metrics in enumerate(window):
        names = [name for name, value in metrics.items() if not math.isfinite(value)]
        if names:
            # The total is a consequence; name the term it comes from where there is one.
            return first + offset, next((name for name in names if name != "total"), "total")
    return None


def start_state(config: ConfigDict, recipe: Recipe, mesh, manager, workdir: pathlib.Path, initial):
    """State and data position to go on from: the newest checkpoint's, or a fresh one."""
    abstract = jax.eval_shape(functools.partial(initial_state, recipe))
    sharding = state_sharding(mesh, abstract)
    if manager.latest_step() is None:
        build = functools.partial(initial_state, recipe)
        return jax.jit(build, out_shardings=sharding)(initial), 0
    saved = checkpoint.read_config(pathlib.Path(manager.directory) / str(manager.latest_step()))
    for line in settings.check_resume(saved, checkpoint.plain(config), workdir):
        print(f"note: setting changed since the last checkpoint: {line}", flush=True)
    state, next_index = checkpoint.restore(manager, abstract, sharding)
    print(f"continuing {workdir} at step {int(state.step)}", flush=True)
    return state, next_index


class Run:
    """One training run in a workdir; `Run(config, workdir).train()`.

    Args:
        config: complete configuration. workdir: folder for checkpoints, metrics and config.json.
        initial: parameters to start from instead of random ones. tokenize: codes of the VQ target.

    Raises:
        UserError: anything the user can mend, before the first step where possible.
    """

    def __init__(
        self, config: ConfigDict, workdir: pathlib.Path, initial: dict | None = None, tokenize: Callable | None = None
    ):
        settings.check(config, jax.process_count())
        self.config, self.workdir = config, workdir
        self.source = build_source(config, config.data.split)
        self.mesh = make_mesh(config.efficiency.mesh)
        recipe = build_recipe(config)
        self.main = jax.process_index() == 0
        workdir.mkdir(parents=True, exist_ok=True)
        self.manager = checkpoint.open_manager(workdir, config.train.keep)
        self.state, self.position = start_state(config, recipe, self.mesh, self.manager, workdir, initial)
        if self.main:
            (workdir / "config.json").write_text(json.dumps(checkpoint.plain(config), indent=2))
        self.step = int(self.state.step)
        self.update = compile_step(recipe, self.mesh, self.state, tokenize)

    def batches(self):
        """This process's batches from the saved position on."""
        data, train = self.config.data, self.config.train
        return train_batches(
            self.source, global_batch=train.batch, seed=self.config.seed, start_step=self.step,
            stop_step=train.steps, canvas=data.canvas, min_side=self.config.model.patch,
            workers=data.workers, threads=data.threads, on_error=data.on_error,
            process_index=jax.process_index(), process_count=jax.process_count(),
        )  # fmt: skip

    def save(self, metrics: dict) -> None:
        """Save unless this step is already there."""
        if self.step not in self.manager.all_steps():
            checkpoint.save(self.manager, self.state, self.position, self.config, metrics)

    def check_finite(self, window: list[dict]) -> None:
        """Say so when steps went bad, and stop when too many did in a row."""
        bad = first_bad(window, self.step - len(window))
        if bad is None:
            return
        limit = self.config.train.max_bad_steps
        print(f"warning: step {bad[0]} was not applied: {bad[1]} is not finite", flush=True)
        if int(self.state.bad_in_a_row) >= limit:
            self.manager.wait_until_finished()
            raise UserError(
                f"stopped at step {bad[0]}: {bad[1]} is not finite ({limit} such steps in a row); the last good "
                f"checkpoint in {self.workdir} is intact. Lower config.optimizer.peak_lr or raise its warmup."
            )

    def train(self) -> dict[str, float]:
        """Train to config.train.steps or to a SIGTERM; returns the last averages.

        Raises:
            UserError: bad numbers or unreadable data.
        """
        train = self.config.train
        progress = Progress(self.workdir, train.steps, train.batch, self.step, self.main)
        stop, window, substituted, means, waiting = StopSignal(), [], 0, {"total": math.inf}, 0.0
        batches = self.batches()
        while self.step < train.steps:
            began = time.perf_counter()
            local, skipped = next(batches)
            waiting += time.perf_counter() - began
            substituted += skipped
            self.state, metrics = self.update(self.state, global_batch(self.mesh, local))
            window.append(metrics)
            self.step, self.position = self.step + 1, self.position + train.batch
            if self.step % LONGEST_QUEUE == 0:
                jax.block_until_ready(metrics)
            stopping = stop.at(self.step)
            ends = stopping or self.step == train.steps
            if ends or self.step % train.log_every == 0 or self.step % train.save_every == 0:
                window = jax.tree.map(float, jax.device_get(window))
                self.check_finite(window)
                extra = {"input_wait_seconds": waiting} | ({"substituted": float(substituted)} if substituted else {})
                means, window, waiting = progress.report(self.step, window, extra), [], 0.0
            if ends or self.step % train.save_every == 0:
                self.save(means)
            if stopping:
                break
        self.manager.wait_until_finished()
        progress.close()
        if self.step < train.steps:
            print(f"SIGTERM: saved step {self.step} in {self.workdir}; the same command continues.", flush=True)
        return means
