"""Commands as forks of one process that has imported what they all import, which takes seconds."""

from __future__ import annotations

import functools
import gc
import json
import os
import pathlib
import runpy
import signal
import subprocess
import sys

from sparse_vis.evals.classes import linear
from tests import small
from tests.main_process import WAIT

IMPORTED = "sparse_vis.commands.run", "sparse_vis.train.loop", "sparse_vis.evals.command"


class Forks:
    """The process whose forks are the commands; leaving the context ends it."""

    def __init__(self, environment: dict[str, str], log: pathlib.Path):
        self.log = log
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        command = [sys.executable, "-m", "tests.forks"]
        self.process = subprocess.Popen(command, env=environment, **pipes)

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, *_) -> None:
        self.process.communicate()

    def run(self, words: tuple[str, ...], folder: pathlib.Path) -> tuple[int, str]:
        """Exit status and output of `python WORDS` in this folder."""
        order = {"words": words, "folder": str(folder), "log": str(self.log)}
        print(json.dumps(order), file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline()), self.log.read_text()


def become(words: list[str], folder: str, log: str) -> None:
    """What `python WORDS` does from here on."""
    os.chdir(folder)
    for stream in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    os.close(0)
    signal.alarm(WAIT)
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path[0] = folder
        runpy.run_path(words[0], run_name="__main__")


def main() -> None:
    for name in IMPORTED:
        __import__(name)
    # A tenth of the probes' steps: what they find is tested in tests/evals/test_linear.py.
    linear.SweepProtocol = functools.partial(linear.SweepProtocol, steps=50)
    small.trace_step()
    gc.freeze()
    for line in sys.stdin:
        order = json.loads(line)
        pathlib.Path(order["log"]).unlink(missing_ok=True)
        if not (child := os.fork()):
            return become(**order)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
