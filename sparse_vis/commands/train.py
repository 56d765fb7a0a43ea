"""Train and then evaluate, or only evaluate: python main.py --config=configs/quickstart.py [--mode=evaluate]

    --config=quickstart        an experiment of configs/ by name, or a file like those; every setting is in
                               sparse_vis/config/defaults.py
    --config.train.steps=100   any setting of it, from the command line
    --workdir=DIR              folder of the run (default: runs/<config name>)
    --mode=evaluate            only run the tasks of config.eval (docs/evaluation.md); --mode=finetune: train
                               a classifier and the weights of config.init (docs/classifiers.md)
    --distributed=auto         run as one of several processes (docs/pods.md); launch/ has scripts that start
                               them
    --stopped_status=75        exit status after a SIGTERM (default 0), to make a scheduler repeat the command

Started again with the same workdir, a run continues where it was. With --workdir and no --config, the
configuration saved there is used. `python -m sparse_vis train` takes the same flags, and so does `evaluate`,
which is --mode=evaluate; other tools: python -m sparse_vis --help
"""

import contextlib
import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from sparse_vis.config import arguments, settings
from sparse_vis.runtime import host
from sparse_vis.runtime.errors import UserError
from sparse_vis.train.stop import StopSignal

EVALUATE = " evaluate"  # how the program's name ends if it is this tool


def define_flags() -> None:
    """Define the flags. absl keeps them for the whole process, so call this once."""
    config_flags.DEFINE_config_file("config", None, "Name of an experiment, or a configuration file.")
    flags.DEFINE(arguments.PathParser(), "workdir", None, "Folder of the run (default: runs/NAME).")
    modes = ["train", "finetune", "evaluate"]
    flags.DEFINE_enum("mode", "train", modes, "Train or fine-tune, then evaluate; or only evaluate.")
    flags.DEFINE_string("distributed", None, "auto, or HOST:PORT,PROCESSES,PROCESS.")
    flags.DEFINE_integer("stopped_status", 0, "Exit status after a SIGTERM.", 0, 255)


def parse(argv: list[str]) -> list[str]:
    """Parse the flags; --help prints this file's docstring. Errors are one sentence."""
    if {"-h", "--help", "-help"} & set(argv):
        print(__doc__)
        sys.exit(0)
    return arguments.parse(argv)


def start(_) -> None:
    """Train and evaluate as the flags say."""
    given = flags.FLAGS
    with StopSignal(given.stopped_status) as stop:  # also during the imports, which take seconds
        if not given["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
        if given.config is None and given.workdir is None:
            raise UserError("give --config=configs/NAME.py, or --workdir of a run to continue.")
        if sys.argv[0].endswith(EVALUATE) and given.mode != "evaluate":
            raise UserError(f"--mode={given.mode} is not for the tool evaluate; give it to the tool train.")
        config = given.config or settings.read(given.workdir)
        with host.uncollected():
            from sparse_vis.commands.run import run  # slow imports, after the flags are checked
            from sparse_vis.interop.step_folder import newest_step
            from sparse_vis.train import distributed

        workdir, others = given.workdir or pathlib.Path("runs", config.name), given.distributed
        with distributed.joined(others, newest_step(workdir)) if others else contextlib.nullcontext():
            run(config, workdir, given.mode, stop)
        stop.end()


def main() -> None:
    """Command line of main.py and of the tools `train` and `evaluate`; see --help."""
    define_flags()
    if sys.argv[0].endswith(EVALUATE):
        flags.FLAGS.set_default("mode", "evaluate")
    app.run(start, flags_parser=parse)
