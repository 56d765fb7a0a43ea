"""The training loop: start or restore, step, report, save; stop on a signal or on non-finite numbers."""

import contextlib
import functools
import math
import time
from collections.abc import Callable

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from sparse_vis.build import build_source
from sparse_vis.config import settings
from sparse_vis.data.loader import train_batches
from sparse_vis.data.sources import OBJECT, Source
from sparse_vis.interop import step_folder
from sparse_vis.losses.reconstruction import psnr_of
from sparse_vis.models.vqgan import VQGAN
from sparse_vis.runtime.errors import UserError, explained
from sparse_vis.runtime.files import write_json
from sparse_vis.runtime.host import CPU_COMPILER_OPTIONS, uncollected
from sparse_vis.runtime.paths import AnyPath, as_path
from sparse_vis.runtime.progress import say, sign_of_life
from sparse_vis.train import checkpoint
from sparse_vis.train.health import HealthCheck
from sparse_vis.train.log import Averages, RunLog, Skipped, short
from sparse_vis.train.mesh import global_batch, make_mesh, state_sharding
from sparse_vis.train.recipe import Recipe, build_recipe
from sparse_vis.train.step import TrainState, compile_step, initial_state, steps_applied
from sparse_vis.train.stop import StopSignal
from sparse_vis.train.trackers import check_trackers, open_trackers

# Steps dispatched at a time: enough to keep the device busy, and few enough to react soon to a SIGTERM. (On
# few cores, a long queue can also deadlock XLA's thread pool on CPU.)
LONGEST_QUEUE = 2

# The first is in config.model, the others in config.loss. With too small a value, the first step overflows.
TEMPERATURES = ("spatial_temperature", "student_temperature", "sinkhorn_temperature")


def bad_terms(metrics: dict[str, float]) -> str:
    """Names of the metrics that are not finite; total and gradient norm only if all terms are finite."""
    names = [name for name, value in metrics.items() if not math.isfinite(value)]
    return ", ".join([name for name in names if name not in ("total", "gradient_norm")] or names)


def start_state(
    config: ConfigDict, recipe: Recipe, mesh, manager, workdir: AnyPath, initial: Callable | None
) -> tuple[TrainState, dict]:
    """State and `data` (`checkpoint.save`) of the newest checkpoint, or of a fresh start from `initial()`."""
    newest = manager.latest_step()
    if newest is not None:
        folder = step_folder.find_step(as_path(manager.directory) / str(newest))
        saved = step_folder.read_config(folder)
        changed = settings.check_resume(saved, settings.plain(config), workdir)
        begun = settings.from_plain(saved, folder)
        if config.seed != begun.seed:  # in a sweep, results of the first seed would pass for the second's
            raise UserError(
                f"{workdir} holds a run with config.seed={begun.seed}, this one has {config.seed}; give "
                "another --workdir, or that seed to continue."
            )
        for line in changed:
            say(f"note: setting changed since the last checkpoint: {line}")

    build, seed = functools.partial(initial_state, recipe), np.uint32(config.seed)
    abstract = jax.eval_shape(build, seed, None)
    sharding = state_sharding(mesh, abstract)
    if newest is None:
        # From host memory, because arrays of one device cannot enter a program of several processes.
        given = jax.tree.map(np.asarray, initial()) if initial else None
        return jax.jit(build, out_shardings=sharding)(seed, given), {"next_index": 0}
    state, data = checkpoint.restore(manager, abstract, sharding)
    say(f"continuing {workdir} at step {newest}")
    note_jump(build_recipe(begun).schedule, recipe.schedule, int(steps_applied(state)))
    return state, data


def note_jump(before: optax.Schedule, now: optax.Schedule, count: int) -> None:
    """Print a note if, with changed settings, the learning rate jumps after the `count` steps so far."""
    last, following = float(before(max(count - 1, 0))), float(now(count))
    if not math.isclose(float(before(count)), following, rel_tol=1e-3):
        say(
            "note: with the current config.optimizer and config.train.steps the learning rate changes "
            f"from {last:.3g} at the last step to {following:.3g} at the next."
        )


def write_config(config: ConfigDict, workdir: AnyPath) -> None:
    """Write a run's configuration as config.json. Raises UserError if it cannot be written."""
    path = workdir / "config.json"
    with explained(OSError, f"{path} cannot be written", "fix this, or give another --workdir."):
        write_json(path, settings.plain(config))


class Run:
    """One training run in a workdir: `Run(config, workdir).train()`.

    Raises UserError for any error that the user can correct, before the first step where possible.

    Args:
        workdir: folder for checkpoints, metrics and config.json.
        initial: returns the initial parameters; called at a fresh start only. None: random parameters.
        tokenizer: module and frozen parameters that compute the codes of the VQ target.
        build: (config, tokenizer module) -> Recipe; benchmarks/evidence/baselines.py has another one.
        source: the images, if config.data does not name them. show: prints the line of a row of metrics.
        probe: source -> (parameters -> numbers and a picture, or None), for config.train.probe_every.
    """

    def __init__(
        self,
        config: ConfigDict,
        workdir: AnyPath,
        initial: Callable[[], dict] | None = None,
        tokenizer: tuple[VQGAN, dict] | None = None,
        build: Callable[..., Recipe] = build_recipe,
        source: Source | None = None,
        show: Callable[[str], None] = say,
        probe: Callable[[Source], Callable] | None = None,
    ):
        settings.check(config, jax.device_count(), jax.default_backend())
        check_trackers(config.train.trackers)
        self.config, self.workdir, self.show = config, workdir, show
        self.main = jax.process_index() == 0
        self.source = build_source(config, config.data.split) if source is None else source
        self.probe = probe(self.source) if probe else None
        self.mesh = make_mesh(config.efficiency.mesh)
        module, params = tokenizer or (None, None)
        recipe, everywhere = build(config, module), NamedSharding(self.mesh, PartitionSpec())
        self.seed = jax.device_put(np.uint32(config.seed), everywhere)
        self.tokenizer = jax.device_put(jax.tree.map(np.asarray, params), everywhere)
        checkpoint.prepare(workdir)
        self.manager = checkpoint.open_manager(workdir, config.train.keep)
        self.state, data = start_state(config, recipe, self.mesh, self.manager, workdir, initial)
        if self.main:
            write_config(config, workdir)
        self.step, self.position = int(self.state.step), data["next_index"]
        self.averages, self.matches = Averages(**data.get("averages", {})), data.get("matches")
        self.skipped, self.bad_row, self.began = Skipped(workdir, data.get("skipped", 0)), [], self.step
        self.recipe, self.update = recipe, compile_step(recipe, self.mesh, self.state)

    def batches(self):
        """This process's batches, from the saved position in the stream on."""
        train = self.config.train
        return self._stream(train.batch, self.position, train.steps - self.step, self.config.data.workers)

    def _stream(self, size: int, position: int, steps: int, workers: int):
        data = self.config.data
        cache = 0 if data.source == OBJECT else data.cache  # an object's items may be random transformations
        return train_batches(
            self.source, global_batch=size, seed=self.config.seed, start_index=position, steps=steps,
            canvas=data.canvas, min_side=self.config.model.patch, workers=workers, threads=data.threads,
            on_error=data.on_error, process_index=jax.process_index(), process_count=jax.process_count(),
            labels=bool(self.config.finetune.classes), cache=cache,
        )  # fmt: skip

    def health_check(self) -> HealthCheck | None:
        """HealthCheck on the first images of the stream, as many as a microbatch holds; None if disabled."""
        if not self.config.train.health_every:
            return None
        size = self.config.train.batch // self.config.efficiency.microbatches
        with contextlib.closing(self._stream(size, position=0, steps=1, workers=0)) as batches:
            batch = global_batch(self.mesh, next(batches)[0])
        every, last = self.config.train.health_every, self.step - self.averages.steps
        return HealthCheck(self.recipe, self.mesh, batch, self.seed, every, last, self.matches)

    def next_batch(self, batches):
        """The next global batch on the devices."""
        local, skipped = next(batches)
        self.skipped.add(skipped)
        return global_batch(self.mesh, local)

    def check_finite(self, window: list[dict[str, float]]) -> None:
        """Warn of steps that were not finite. Raises UserError at config.train.max_bad_steps in a row."""
        limit, bad = self.config.train.max_bad_steps, []
        for step, metrics in enumerate(window, self.step - len(window) + 1):
            terms = bad_terms(metrics)
            self.bad_row = [*self.bad_row, (step, terms)] if terms else []
            bad += self.bad_row[-1:]
            if len(self.bad_row) == limit:
                first, terms = self.bad_row[0]
                checkpoint.finish(self.manager)
                saved = step_folder.saved_steps(self.workdir)
                raise UserError(
                    f"stopped at step {step}: {terms} not finite in {limit} steps in a row, from step "
                    f"{first} on (no update was applied; {saved}); {self.remedy(first, terms)}."
                )
        if bad:
            step, terms = bad[0]
            say(f"warning: {len(bad)} updates skipped, first step {step}: {terms} not finite")

    def remedy(self, first: int, terms: str) -> str:
        """What to do if these terms are not finite from step `first` on."""
        if first > self.began + 1:
            return "lower config.optimizer.peak_lr or raise its warmup"
        names = [f"model.{TEMPERATURES[0]}", *(f"loss.{name}" for name in TEMPERATURES[1:])]
        names += [f"loss.{term}" for term in terms.split(", ") if term in self.config.loss]
        values = ", ".join(f"config.{name}={settings.at(self.config, name)}" for name in names)
        since, changed = "with the very first step", "the weights of config.init, " * bool(self.config.init)
        if self.began:
            since, changed = (
                "with the first step after the restart",
                "what changed since the checkpoint (notes above), its parameters, ",
            )
        return (
            f"this began {since}, so the learning rate is not the cause; check {changed}the images, and "
            f"{values}"
        )

    def train(self, stop: StopSignal | None = None) -> dict[str, float]:
        """Train to the last step, or until `stop` has a signal, and save; returns the last row of metrics."""
        steps = self.config.train.steps
        if self.step >= steps:
            say(
                f"{self.workdir} is already finished (step {self.step} of {steps}); there is nothing left "
                "to train."
            )
            return {}
        with contextlib.ExitStack() as exits:
            batches = exits.enter_context(contextlib.closing(self.batches()))
            self.introduce()
            batch = self.next_batch(batches)
            say("compiling the step ...")
            began = time.perf_counter()
            alive = sign_of_life("still compiling") if self.main else contextlib.nullcontext()
            with alive, uncollected():
                lowered = self.update.lower(self.state, batch, self.tokenizer, self.seed)
                traced = time.perf_counter() - began
                log = exits.enter_context(self.open_log())
                on_cpu = jax.default_backend() == "cpu"
                update = lowered.compile(compiler_options=CPU_COMPILER_OPTIONS if on_cpu else None)
            took = time.perf_counter() - began
            say(f"compiled in {took:.0f} s, {traced:.0f} of them tracing")
            self.health = self.health_check()
            log.start_clock()
            exits.callback(checkpoint.finish, self.manager)
            return self._steps(update, batches, batch, log, stop or StopSignal())

    def open_log(self) -> RunLog:
        """The log of this run, and in the main process its trackers."""
        train, settings_of = self.config.train, settings.leaves(self.config)
        log = RunLog(self.workdir, train.steps, train.batch, self.step, self.main, self.show)
        if self.main:
            log.writers += open_trackers(train.trackers, self.workdir, settings_of)
        return log

    def introduce(self) -> None:
        """Print sizes of the model, length of the training, and devices."""
        model, train, images = self.recipe.model, self.config.train, len(self.source)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(self.state.params))
        size, patch, processes = model.encoder.image_size, model.patch, jax.process_count()
        lines = (
            f"model: {parameters:,} parameters, r = {model.encoder.queries} tokens, n = "
            f"{math.prod(model.grid(size, size))} patches of {patch}x{patch} pixels, images {size}x{size}",
            f"training: {train.steps} steps of {train.batch} images, {short(images / train.batch)} steps an "
            f"epoch, {short(train.steps * train.batch / images)} epochs",
            f"devices: {self.mesh.size} x {jax.devices()[0].device_kind}"
            + f" of {processes} processes" * (processes > 1),
        )
        say("\n".join(lines))

    def derived(self, means: dict[str, float]) -> dict[str, float]:
        """Further numbers of a row: epochs so far and, for pixel targets, the reconstruction's PSNR in dB."""
        found = {"epoch": self.position / len(self.source)}
        if self.config.model.target == "pixel" and "reconstruction" in means:
            found["reconstruction_psnr"] = psnr_of(means["reconstruction"])
        return found

    def place(self) -> dict:
        """What a continued run needs besides state and configuration: `data` of `checkpoint.save`."""
        place = {
            "next_index": self.position,
            "averages": {"sums": self.averages.sums, "steps": self.averages.steps},
            "skipped": self.skipped.count,
        }
        if self.health and self.health.known:
            self.matches = np.asarray(self.health.matches).tolist()
        return place | {"matches": self.matches}

    def _steps(self, update, batches, batch, log: RunLog, stop: StopSignal) -> dict[str, float]:
        train, window, waiting, row = self.config.train, [], 0.0, {}
        while True:
            self.state, metrics = update(self.state, batch, self.tokenizer, self.seed)
            window.append(metrics)
            self.step, self.position, stop.keep = self.step + 1, self.position + train.batch, True
            jax.block_until_ready(window[-LONGEST_QUEUE:][0])
            ends = stop.at(self.step) or self.step == train.steps
            saves = ends or self.step % train.save_every == 0
            # Rows are of the same steps and average over the same steps, however often a run is interrupted.
            shows = self.step in (1, train.steps) or self.step % train.log_every == 0
            if saves or shows:
                skipped, window = self._settle(window), []
            if shows:
                means = self.averages.means()
                extra = {"input_wait_seconds": waiting, "skipped": float(skipped)} | self.derived(means)
                if self.health and self.step >= self.health.due:
                    extra |= self.health(self.step, self.state)
                row = log.report(self.step, means, extra)
                self.averages, waiting = Averages(), 0.0
            if self.probe and self.step % train.probe_every == 0 and not stop.received:
                began = time.perf_counter()
                if (found := self.probe(self.state.params)) is not None:
                    log.add_probe(self.step, *found, time.perf_counter() - began)
            if saves:
                self._save(log)
            if ends:
                return row
            began = time.perf_counter()
            try:
                batch = self.next_batch(batches)
            except Exception as error:  # e.g. an image that cannot be decoded
                if jax.process_count() > 1:  # the other processes have read their images and would not save
                    raise
                self._settle(window)
                if not saves:
                    self._save(log)
                raise self._saved_before(error) from error.__cause__
            waiting += time.perf_counter() - began

    def _settle(self, window: list[dict]) -> int:
        """Check and average the metrics of these steps; returns the number of images skipped so far."""
        window = jax.tree.map(float, jax.device_get(window))
        self.check_finite(window)
        self.averages.add(window)
        return self.skipped.report()

    def _save(self, log: RunLog) -> None:
        log.sync()
        checkpoint.save(self.manager, self.state, self.place(), self.config)

    def _saved_before(self, error: Exception) -> Exception:
        """The error of images that cannot be read, with a note of where the last step was saved."""
        checkpoint.finish(self.manager)
        saved = f"step {self.step} is saved in {self.workdir}; repeat the command to go on"
        if isinstance(error, UserError):
            return UserError(f"{str(error).rstrip('.')} ({saved}).")
        say(f"{saved}.")
        return error
