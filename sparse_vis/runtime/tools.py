"""What the tools share: flags, whose errors are one sentence, and an early check of --output."""

import argparse
import difflib
import os
import pathlib
import re
import sys
from collections.abc import Iterable
from typing import NoReturn

from sparse_vis.runtime import paths
from sparse_vis.runtime.errors import UserError, explained
from sparse_vis.runtime.skipped import MAX_PIXELS, ON_ERROR


def unknown_flag(flag: str, known: Iterable[str], program: str) -> str:
    """The error sentence for an unknown flag, with the most similar known one."""
    nearest = difflib.get_close_matches(flag, known, n=1, cutoff=0.7)
    remedy = f"did you mean {nearest[0]}?" if nearest else f"{program} --help lists the flags."
    return f"{flag} is not a flag of {program}; {remedy}"


def positive(text: str) -> int:
    """argparse `type` of a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


LARGEST_SIDE = 8192  # pixels; a larger image is surely a mistake: with sides of 100,000 it would take 40 GB

# Flags of several tools -> their arguments of `add_argument`, some of which a tool may replace.
FLAGS = {
    "--checkpoint": dict(required=True, type=paths.place, help=paths.PLACES),
    "--name": dict(help="which model, if the release folder holds several"),
    "--tokenizer": dict(
        type=paths.path, metavar="FILE",
        help="weights of the VQ tokenizer, if the checkpoint does not name them",
    ),
    "--input": dict(
        required=True, type=paths.folder, metavar="IMAGES",
        help="folder of images, packed folder (`pack`), or an address: table:FILE, webdataset:TARS, "
        "hf:NAME or tfds:NAME (docs/your_images.md)",
    ),
    "--split": dict(help="split, if --input is an address, e.g. train[:90%%]"),
    "--data-dir": dict(
        type=paths.folder, metavar="FOLDER",
        help="for an address: folder where a table's paths begin, for the index of tars, for the "
        "cache of `datasets`, or with the prepared TFDS data set",
    ),
    "--output": dict(required=True, type=paths.path, metavar="FOLDER"),
    "--shard-size": dict(type=positive, default=4096, help="images per shard (%(default)s)"),
    "--threads": dict(
        type=positive, default=os.cpu_count(), help="number of threads that decode images (%(default)s)",
    ),
    "--on-error": dict(
        choices=ON_ERROR, default="stop", help="what to do if an image cannot be used (%(default)s)",
    ),
    "--letterbox": dict(action="store_true", help="show whole images, in a border, not their centre crop"),
    "--max-pixels": dict(
        type=positive, default=MAX_PIXELS, help="images with more pixels are refused (%(default)s)",
    ),
}  # fmt: skip


def image_size(text: str) -> tuple[int, int]:
    """argparse `type` of HEIGHTxWIDTH in pixels; each at most LARGEST_SIDE."""
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    size = tuple(map(int, match.groups())) if match else (0, 0)
    if min(size) < 1 or max(size) > LARGEST_SIDE:
        sides = f"at most {LARGEST_SIDE} each"
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; give HEIGHTxWIDTH in pixels, {sides}")
    return size


def check_size(size: tuple[int, int], patch: int) -> None:
    """Raise UserError for a --size smaller than a patch of the model."""
    if min(size) < patch:
        raise UserError(
            f"--size={size[0]}x{size[1]} is smaller than a patch of the model ({patch} pixels); enlarge it."
        )


class Parser(argparse.ArgumentParser):
    """argparse without abbreviated flags; it raises UserErrors, knows FLAGS, and shows the (%(default)s) of a
    help text as (default: …)."""

    def __init__(self, **settings):
        super().__init__(**{"prog": sys.argv[0], "allow_abbrev": False, **settings})

    def add_argument(self, flag: str, *others: str, **settings) -> argparse.Action:
        settings = {"help": "", **FLAGS.get(flag, {}), **settings}
        settings["help"] = settings["help"].replace("(%(default)s)", "(default: %(default)s)")
        return super().add_argument(flag, *others, **settings)

    def parse_args(self, args=None, namespace=None):
        """As argparse, but an unknown flag is reported before a missing required one."""
        args = sys.argv[1:] if args is None else args
        known = self._option_string_actions
        for flag in (word.partition("=")[0] for word in args):
            if re.match("--?[a-zA-Z]", flag) and flag not in known:
                raise UserError(unknown_flag(flag, known, self.prog))
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; {self.prog} --help lists the flags.")


def check_folder(path: pathlib.Path, name: str = "--output") -> None:
    """Raise UserError if a folder, given by the flag `name`, cannot be created or written to.

    Of a bucket, only whether it answers: whether it can be written to is found out when it is locked.
    """
    if paths.in_bucket(path):
        remedy = "repeat the command when the network and this machine's credentials allow it."
        with explained(OSError, f"{name}={path} cannot be reached", f"give another {name}, or {remedy}"):
            path.exists()
        return
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    reason = f"no permission in {there}" if there.is_dir() else f"{there} is a file"
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{name}={path} cannot be written ({reason}); give another {name}.")
