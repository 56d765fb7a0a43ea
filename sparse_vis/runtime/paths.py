"""Where paths enter: from a flag, a setting or an argument of the notebook interface."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

from sparse_vis.runtime.errors import UserError

HUB = "hf://"


def fault(text: str, hub: bool = False) -> str | None:
    """What is wrong with a path, to follow the path in a sentence; None if nothing is.

    Args:
        text: as given. hub: whether addresses on the Hugging Face hub are read here.
    """
    if not text.strip():
        return "is empty; give a path (the current folder is .)"
    if text.startswith("~") and os.path.expanduser(text) == text:
        return "names the home of a user who does not exist; give the whole path, or ./~ for such a name"
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text)
    if scheme and not (hub and text.startswith(HUB)):
        return "is an address; mount it as a folder or copy it to one, and give the path of that"
    return None


def local(path: str | bytes | os.PathLike, what: str, hub: bool = False) -> str:
    """A path with ~ expanded, which a shell leaves alone after the = of a flag.

    Args:
        path: as given. what: names it in a message, e.g. "config.data.path". hub: of `fault`.

    Raises:
        UserError: it is empty, or an address such as gs://bucket/run.
    """
    text = os.fsdecode(path)
    if wrong := fault(text, hub):
        raise UserError(f"{what}={text} {wrong}.")
    return text if text.startswith(HUB) else os.path.expanduser(text)


def folder(text: str) -> str:
    """The value of a flag that names images, for argparse's `type`."""
    return _flag(text, hub=False)


def place(text: str) -> str:
    """The value of --checkpoint, which may be on the hub, for argparse's `type`."""
    return _flag(text, hub=True)


def path(text: str) -> Path:
    """The value of a flag that names a file or folder, for argparse's `type`."""
    return Path(_flag(text, hub=False))


def _flag(text: str, hub: bool) -> str:
    if wrong := fault(text, hub):
        raise argparse.ArgumentTypeError(f"{text!r} {wrong}")
    return local(text, "", hub)
