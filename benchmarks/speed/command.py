"""Shared by the benchmarks' command lines: their flags, and writing results as JSON."""

import argparse
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Callable

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from sparse_vis.config import arguments, settings
from sparse_vis.runtime import paths
from sparse_vis.runtime.errors import UserError, command_line
from sparse_vis.runtime.tools import Parser

PACKAGES = ("jax", "jaxlib", "flax", "optax", "ott-jax", "numpy", "torch", "transformers")
ROOT = pathlib.Path(__file__).resolve().parents[2]


def script_parser(spec, doc: str) -> Parser:
    """A parser without arguments, for programs without --config; `spec`, `doc`: __spec__ and __doc__."""
    prog = f"python -m {spec.name.removesuffix('.__main__')}"
    return Parser(prog=prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def run(main: Callable, doc: str, times: bool = True) -> None:
    """For programs with --config: define it and --json, parse absl's flags, and call main(flags)."""
    config_flags.DEFINE_config_file("config", None, "An experiment of configs/.")
    flags.DEFINE_string("json", None, "File for the numbers.")
    if times:
        flags.DEFINE_integer("repeats", 9, "Timed runs.", lower_bound=1)
    run_with_flags(main, doc)


def run_with_flags(main: Callable, doc: str) -> None:
    """Parse the absl flags that the program has defined, and call main(flags); --help shows `doc`."""

    def parse(argv):
        if {"-h", "--help", "-help"} & set(argv):
            print(doc)
            sys.exit(0)
        rest = arguments.parse(argv)
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
        return rest

    command_line(lambda: app.run(lambda _: main(flags.FLAGS), flags_parser=parse))


def printed_by(*words: str) -> str:
    """The output of a new Python process. Raises UserError, with the last line, if it fails."""
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise UserError(f"a command failed ({' '.join(said)}); correct that and repeat.")
    return done.stdout


def checked_config(given: flags.FlagValues) -> ConfigDict:
    """The configuration, after checking it and --json before any long work. Raises UserError."""
    import jax  # here, after the flags have been parsed

    if given.config is None:
        raise UserError("give --config=configs/NAME.py, e.g. --config=configs/imagenet_b16.py.")
    settings.check(given.config, jax.device_count())
    check_file(given.json)
    return given.config


def check_file(path: str | None, flag: str = "--json") -> None:
    """Raise UserError, before any long work, if a file to write is in a folder that does not exist."""
    if path and not pathlib.Path(paths.expanded(path, flag)).absolute().parent.is_dir():
        raise UserError(f"{flag}={path}: its folder does not exist; create it, or use benchmarks/results/.")


def write_json(path: str | None, result: dict) -> None:
    """Write a result and the description of the machine, if a path is given."""
    if path:
        text = json.dumps({**result, "machine": machine()}, indent=1)
        pathlib.Path(paths.expanded(path, "--json")).write_text(text + "\n")


def machine() -> dict:
    """Device, versions, date and command, which are written with every result."""
    import jax

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "device": jax.devices()[0].device_kind, "devices": jax.device_count(), "cores": os.cpu_count(),
        "processor": processor(), "python": platform.python_version(), "versions": versions,
        "date": datetime.date.today().isoformat(), "command": " ".join(sys.argv),
    }  # fmt: skip


def processor() -> str:
    """Name of this machine's processor."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def device() -> str:
    """This machine's devices, in words."""
    import jax

    kind = jax.devices()[0].device_kind
    return f"{jax.device_count()} x {kind}" if kind != "cpu" else f"CPU ({processor()})"
