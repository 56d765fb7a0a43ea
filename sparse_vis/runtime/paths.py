"""Check and expand paths given as a flag, a setting or an argument of the notebook interface."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from sparse_vis.runtime.errors import UserError

HUB = "hf://"
PLACES = "workdir, step folder, released file or folder, hf:// address, or pictures-tiny"  # of a model


def fault(text: str, hub: bool = False) -> str | None:
    """What is wrong with a path, as the rest of a sentence that begins with it; None if nothing is.

    Args:
        hub: whether hf:// addresses are allowed.
    """
    if not text.strip():
        return "is empty; give a path (the current folder is .)"
    if text.startswith("~") and os.path.expanduser(text) == text:
        return (
            "starts with ~ and the name of an unknown user; give the full path, or ./~ for a file of that "
            "name"
        )
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text)
    if scheme and not (hub and text.startswith(HUB)):
        return "is an address, not a path; mount it as a folder or copy its files, and give that folder"
    return None


def local(path: str | bytes | os.PathLike, what: str, hub: bool = False) -> str:
    """A path with ~ expanded, because a shell does not expand it after the = of a flag.

    Args:
        what: the path's name in messages, e.g. "config.data.path". hub: as in `fault`.

    Raises:
        UserError: the path is empty, has an unknown ~user, is an address such as gs://bucket/run, or no path.
    """
    if not isinstance(path, str | bytes | os.PathLike):
        raise UserError(f"{what} is a {type(path).__name__}, not a path; give one.")
    text = os.fsdecode(path)
    if wrong := fault(text, hub):
        raise UserError(f"{what}={text} {wrong}.")
    return text if text.startswith(HUB) else os.path.expanduser(text)


def place(text: str, hub: bool = True) -> str:
    """argparse `type` of --checkpoint: a path with ~ expanded, or an hf:// address."""
    if wrong := fault(text, hub):
        raise argparse.ArgumentTypeError(f"{text!r} {wrong}")
    return local(text, "", hub)


def is_utf8(path: Path) -> bool:
    """Whether the whole name of a path is UTF-8; some libraries can neither read nor write below others."""
    try:
        str(path.resolve()).encode()
    except UnicodeEncodeError:
        return False
    return True


def folder(text: str) -> str:
    """argparse `type` of a flag that names images: the path with ~ expanded."""
    return place(text, hub=False)


def path(text: str) -> Path:
    """argparse `type` of a flag that names a file or folder: a Path with ~ expanded."""
    return Path(folder(text))
