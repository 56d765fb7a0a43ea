"""The command line that benchmarks share: --config with its overrides, --repeats, --json."""

from __future__ import annotations

import sys
from collections.abc import Callable

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from sparse_vis.config import arguments, settings
from sparse_vis.runtime.errors import UserError

CONFIG = config_flags.DEFINE_config_file("config", None, "An experiment of configs/.")
JSON = flags.DEFINE_string("json", None, "File for the numbers.")
REPEATS = flags.DEFINE_integer("repeats", 9, "Timed runs.", lower_bound=1)


def parser(documentation: str) -> Callable:
    """The flags, or one sentence on what is wrong with them; --help shows the documentation."""

    def parse(argv):
        if {"-h", "--help", "-help"} & set(argv):
            print(documentation)
            sys.exit(0)
        rest = arguments.parse(argv)
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
        return rest

    return parse


def checked_config() -> ConfigDict:
    """The configuration, checked for this machine before any long work.

    Raises:
        UserError: none is given, its settings exclude each other, or --json cannot be written.
    """
    import jax  # only now, with good flags

    from benchmarks.speed.record import check_json

    if CONFIG.value is None:
        raise UserError("give --config=configs/NAME.py, e.g. --config=configs/imagenet_b16.py.")
    settings.check(CONFIG.value, jax.device_count())
    check_json(JSON.value)
    return CONFIG.value


def device() -> str:
    """This machine's devices in words."""
    import jax

    from benchmarks.speed.record import processor

    kind = jax.devices()[0].device_kind
    return f"{jax.device_count()} x {kind}" if kind != "cpu" else f"CPU ({processor()})"


def write(result: dict) -> None:
    """The numbers into --json, where it is given."""
    from benchmarks.speed.record import write_json

    write_json(JSON.value, result)
