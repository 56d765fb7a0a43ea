"""Train, then evaluate, or only that: python main.py --config=configs/quickstart.py [--mode=evaluate]

    --config=FILE              an experiment of configs/; every setting is in sparse_vis/config/defaults.py
    --config.train.steps=100   any setting of it, from the command line
    --workdir=DIR              folder of the run (default: runs/<config name>)
    --mode=evaluate            only the tasks of config.eval: docs/evaluation.md
    --distributed=auto         be one process of several; launch/ has the starters, docs/pods.md the rest

Started again with the same workdir, a run continues where it was. With --workdir and no --config, the
configuration saved there is used. Other tools: python -m sparse_vis.<tool> --help,
of extract, reconstruct, export, report, data.pack
"""

import contextlib
import pathlib
import sys

from sparse_vis.runtime import host

if __name__ == "__main__":
    host.prepare()

from absl import app, flags, logging
from ml_collections import config_flags

from sparse_vis.config import arguments, settings
from sparse_vis.runtime.errors import UserError, command_line
from sparse_vis.train.stop import StopSignal

CONFIG = config_flags.DEFINE_config_file("config", None, "An experiment of configs/.")
WORKDIR = flags.DEFINE(arguments.PathParser(), "workdir", None, "Folder of the run (default: runs/NAME).")
MODE = flags.DEFINE_enum("mode", "train", ["train", "evaluate"], "Train and evaluate, or only evaluate.")
DISTRIBUTED = flags.DEFINE_string("distributed", None, "auto, or HOST:PORT,PROCESSES,PROCESS.")


def parse(argv):
    """The flags, or one sentence on what is wrong with them; --help shows this file's docstring."""
    if {"-h", "--help", "-help"} & set(argv):
        print(__doc__)
        sys.exit(0)
    return arguments.parse(argv)


def main(_):
    stop = StopSignal().listen()
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    if CONFIG.value is None and WORKDIR.value is None:
        raise UserError("give --config=configs/NAME.py, or --workdir of a run to continue.")
    config = CONFIG.value or settings.read(WORKDIR.value)
    from sparse_vis.commands.run import run
    from sparse_vis.train import checkpoint, distributed  # heavy, hence only now, with good flags

    workdir, others = WORKDIR.value or pathlib.Path("runs", config.name), DISTRIBUTED.value
    with distributed.joined(others, checkpoint.newest_step(workdir)) if others else contextlib.nullcontext():
        run(config, workdir, MODE.value, stop)
    stop.end()


if __name__ == "__main__":
    command_line(lambda: app.run(main, flags_parser=parse))
