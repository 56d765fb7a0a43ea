"""Train: `python main.py --config=configs/quickstart.py [--workdir=DIR] [--config.train.steps=100]`.

Started again with the same workdir, a run continues. With --workdir and no --config, the configuration
saved there is used. --help lists the flags; other tools are `python -m sparse_vis.<tool> --help`.
"""

import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from sparse_vis.errors import UserError

CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/; override with --config.a.b=value.")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run (default: runs/<config name>).")


def main(arguments):
    if len(arguments) > 1:
        raise UserError(f"unexpected argument {arguments[1]!r}; flags are written --name=value.")
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)
    from sparse_vis.train import settings
    from sparse_vis.train.run import run

    if CONFIG.value is None and WORKDIR.value is None:
        raise UserError("give --config=configs/NAME.py, or --workdir of a run to continue.")
    config = CONFIG.value or settings.read(pathlib.Path(WORKDIR.value))
    run(config, pathlib.Path(WORKDIR.value or f"runs/{config.name}"))


if __name__ == "__main__":
    try:
        app.run(main)
    except UserError as error:
        sys.exit(f"error: {error}")
