"""`main.py`: train a configuration in a workdir, then run its evaluations; or only the evaluations."""

import functools
import shlex
import sys

import jax
from ml_collections import ConfigDict

from sparse_vis.config import settings
from sparse_vis.data.sources import Source
from sparse_vis.interop import step_folder
from sparse_vis.interop.maskgit import load_tokenizer
from sparse_vis.models.vqgan import VQGAN
from sparse_vis.runtime import lock
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.paths import AnyPath
from sparse_vis.train.checkpoint import check_place
from sparse_vis.train.distributed import held
from sparse_vis.train.finetune import finetune_params, finetune_recipe, prepare
from sparse_vis.train.init import initial_params
from sparse_vis.train.loop import Run
from sparse_vis.train.stop import StopSignal


def run(config: ConfigDict, workdir: AnyPath, mode: str, stop: StopSignal) -> None:
    """Train or fine-tune to the last step, or continue that, then evaluate; or only evaluate, as `mode` says.

    `stop` is checked after every step. Raises UserError for any error that the user can correct.
    """
    settings.check(config)
    check_place(workdir)
    alone = jax.process_count() == 1
    if not alone:
        stop.share()
    if mode == "evaluate" and not config.eval.tasks:
        raise UserError("--mode=evaluate needs tasks; give e.g. --config.eval.tasks=\"('knn', 'linear')\".")
    if config.eval.tasks:
        from sparse_vis.evals import command  # imported only if needed: it takes seconds
    if mode != "evaluate":
        with held(workdir, "training", "--workdir"):
            given = {"source": prepare(config)} if mode == "finetune" else {}
            if config.eval.tasks:
                # Report now what would fail after days of training; what this reads is not kept in memory.
                command.check_classifier(command.make_plan(config), config.finetune.classes)
            (finetune if mode == "finetune" else train)(config, workdir, stop, **given)
    if stop.received:
        return
    missed = _evaluate(config, workdir, stop) if config.eval.tasks else []
    if not alone:
        jax.distributed.shutdown()  # the other processes end with status 0
    if jax.process_index() != 0:
        return
    print(closing(workdir), flush=True)
    if missed:
        sys.exit(
            f"{len(missed)} of {len(config.eval.expected)} expected figures are not met: {'; '.join(missed)}."
        )


def _evaluate(config: ConfigDict, workdir: AnyPath, stop: StopSignal) -> list[str]:
    """Run the unfinished evaluations; returns the figures of config.eval.expected that were not met."""
    from sparse_vis.evals import command

    stop.message = "during the evaluation: finished tasks are saved; repeat the command to run the others."
    stop.keep = False
    if jax.process_count() > 1:
        stop.listen()  # until here jax.distributed handled signals
    # Not the lock of training: a run may be evaluated while it trains.
    with held(workdir, "evaluation", "--workdir", lock.EVALUATION_LOCK):
        try:
            return command.evaluate(config, workdir, command.make_plan(config))
        except OSError as error:
            what = f"the evaluation in {workdir} stopped ({error}); finished tasks are kept"
            raise UserError(f"{what}: fix this, or free disk space, and repeat the command.") from error


def closing(workdir: AnyPath) -> str:
    """The files of a run, and commands that can be run next."""
    step, name = step_folder.newest_step(workdir), str(workdir)
    files = {
        f"{step_folder.FOLDER}/{step}": "the newest checkpoint",
        "metrics.jsonl": "all numbers of training; tensorboard/ has them too",
        "probe": "pictures of some images during training",
        "evaluation.json": "all numbers of the evaluations; evaluation.md has the tables",
        "localization.png": "held-out scenes: reconstructions, masks, where each token looks",
        "photographs.png": "the photographs in the package, which are larger than the images of training",
    }
    lines = [f"in {workdir}:"]
    lines += [f"  {file:<16}  {what}" for file, what in files.items() if (workdir / file).exists()]
    if step:
        tool = f"  python -m sparse_vis {{}} --checkpoint={shlex.quote(name)} {{}}"
        lines += ["next:", tool.format("report", "--output=report.html")]
        lines += [tool.format("extract", "--input=FOLDER --output=features")]
        lines += [f"  model, params = sparse_vis.load({name!r})  # in Python"]
    return "\n".join(lines)


def train(config: ConfigDict, workdir: AnyPath, stop: StopSignal, **given) -> None:
    """Train to the last step, or until SIGTERM or Ctrl-C; `given` are arguments of `Run`."""
    if config.finetune.classes:
        raise UserError("config.finetune.classes is set, so this is a fine-tuning; give --mode=finetune.")
    initial = functools.partial(initial_params, config) if config.init else None
    tokenizer, probe = read_tokenizer(config), None
    if config.train.probe_every:
        from sparse_vis.commands.watch import Watch  # imported only if needed: it takes seconds

        probe = functools.partial(Watch, config, tokenizer)
    _to_the_end(Run(config, workdir, initial=initial, tokenizer=tokenizer, probe=probe, **given), stop)


def finetune(config: ConfigDict, workdir: AnyPath, stop: StopSignal, source: Source) -> None:
    """Fine-tune as `train` trains, with a configuration that `prepare` has completed, and its images."""
    if not config.init and jax.process_index() == 0:
        print("note: config.init names no weights, so the classifier starts from random ones.", flush=True)
    initial = functools.partial(finetune_params, config)
    _to_the_end(Run(config, workdir, initial=initial, build=finetune_recipe, source=source), stop)


def _to_the_end(training: Run, stop: StopSignal) -> None:
    training.train(stop)
    if stop.received:
        what = f"{stop.name}: saved step {training.step} in {training.workdir}"
        print(f"{what}; repeat the command to continue.", flush=True)


def read_tokenizer(config: ConfigDict) -> tuple[VQGAN, dict] | None:
    """Module and parameters of the VQ target's tokenizer; None for the pixel target."""
    if config.model.target != "vq":
        return None
    named = config.model.tokenizer
    if not named.path:
        what = "--config.model.tokenizer.path=FILE with MaskGIT-VQGAN weights"
        raise UserError(f"config.model.target=vq needs {what}.")
    module, params = load_tokenizer(named.path, named.dtype)
    if (codes := module.num_embeddings) != named.codes:
        raise UserError(f"{named.path} has {codes} codes; set config.model.tokenizer.codes={codes}.")
    return module, params
