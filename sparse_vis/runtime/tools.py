"""Shared by the command lines: flags whose errors are one sentence, and an early check of --output."""

from __future__ import annotations

import argparse
import difflib
import os
import pathlib
import re
import sys
from collections.abc import Iterable
from typing import NoReturn

from sparse_vis.runtime.errors import UserError


def unknown_flag(flag: str, known: Iterable[str], program: str) -> str:
    """The error sentence for an unknown flag, with the most similar known one."""
    nearest = difflib.get_close_matches(flag, known, n=1, cutoff=0.7)
    remedy = f"did you mean {nearest[0]}?" if nearest else f"{program} --help shows the flags."
    return f"{flag} is no flag of {program}; {remedy}"


class Parser(argparse.ArgumentParser):
    """argparse without abbreviated flags, whose errors are UserErrors."""

    def __init__(self, **settings):
        super().__init__(allow_abbrev=False, **settings)

    def parse_args(self, args=None, namespace=None):
        """As argparse, but an unknown flag is reported before a missing required one."""
        args = sys.argv[1:] if args is None else args
        known = self._option_string_actions
        for flag in (word.partition("=")[0] for word in args):
            if re.match("--?[a-zA-Z]", flag) and flag not in known:
                raise UserError(unknown_flag(flag, known, self.prog))
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help shows the flags.")


def check_folder(path: pathlib.Path) -> None:
    """Refuse, with a UserError, an --output folder that cannot be created or written to."""
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    reason = f"no permission in {there}" if there.is_dir() else f"{there} is a file"
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"--output={path} cannot be written ({reason}); give another --output.")


def positive(text: str) -> int:
    """argparse `type` of a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of at least 1")
    return int(text)
