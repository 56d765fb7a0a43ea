"""Reads commands as JSON on stdin and hands each to the real parser of its program, which then stops.

A process of its own, which imports the heavy libraries once and forks for every command. For each command it
prints {"error": one text or null, "help": what --help printed, "flags": names that the parser knows}.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import os
import pathlib
import runpy
import sys
import traceback

import absl.app
from absl import flags

ROOT = pathlib.Path(__file__).resolve().parent.parent
IMPORTED = "sparse_vis.commands.run", "sparse_vis.train.loop", "sparse_vis.evals.command", "torch"
ELLIPSIS = "…"  # in a command of the docs: and the other arguments


class Parsed(BaseException):
    """In place of the program's work. `rest`: arguments for another program that it would start."""

    def __init__(self, rest: list[str] | None = None):
        self.rest = rest


def stop_after_parsing(known: list[str]) -> None:
    """Let argparse and absl parse, note the flags, and raise Parsed.

    Args:
        known: gets the names of the parser's flags.
    """
    parse_args = argparse.ArgumentParser.parse_args

    def parse(self, arguments=None, namespace=None):
        known.extend(max(action.option_strings, key=len) for action in self._actions if action.option_strings)
        arguments = sys.argv[1:] if arguments is None else arguments
        for action in self._actions if ELLIPSIS in arguments else ():
            action.required = False
        given = parse_args(self, [x for x in arguments if x != ELLIPSIS])
        if "arguments" in given:  # launch/local.py: what follows -- is for main.py, or for --tool
            tool = getattr(given, "tool", None)
            raise Parsed([*(["-m", "sparse_vis", tool] if tool else ["main.py"]), *given.arguments])
        raise Parsed

    def run(main, flags_parser):
        of_module = flags.FLAGS.flags_by_module_dict()
        own = {
            module: of_module[module]
            for module in of_module
            if "absl" not in module
            and module in (sys.argv[0], "benchmarks.speed.command", "sparse_vis.commands.train")
        }
        known.extend(f"--{flag.name}" for flags_ in own.values() for flag in flags_)
        flags_parser([x for x in sys.argv if x != ELLIPSIS])
        if (config := flags.FLAGS["config"].value) is not None:
            from sparse_vis.config import settings

            settings.check(config)
        raise Parsed

    argparse.ArgumentParser.parse_args, absl.app.run = parse, run


def start(arguments: list[str]) -> None:
    """Run a program as python does, given what follows `python`."""
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        return runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    sys.argv = arguments
    sys.path[0] = str((ROOT / arguments[0]).parent)
    return runpy.run_path(arguments[0], run_name="__main__")


def outcome(arguments: list[str]) -> dict:
    """What the parsers say about a command."""
    out, known, error = io.StringIO(), [], None
    stop_after_parsing(known)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            while arguments:
                try:
                    start(arguments)
                    raise Parsed  # a program without a parser has run
                except Parsed as parsed:
                    arguments = parsed.rest
    except SystemExit as stopped:
        if stopped.code:
            error = f"{out.getvalue()}{stopped.code}"
    except BaseException:
        error = traceback.format_exc()
    return {"error": error, "help": out.getvalue(), "flags": known}


def in_a_fork(arguments: list[str]) -> dict:
    """The outcome, found in a process that may be spoiled."""
    read, write = os.pipe()
    if not (child := os.fork()):
        with os.fdopen(write, "w") as pipe:
            json.dump(outcome(arguments), pipe)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text)


if __name__ == "__main__":
    os.chdir(ROOT)
    for name in IMPORTED:
        __import__(name)
    gc.freeze()
    json.dump([in_a_fork(arguments) for arguments in json.load(sys.stdin)], sys.stdout)
