"""Check and expand paths given as a flag, a setting or an argument of the notebook interface."""

import argparse
import importlib.util
import os
import pathlib
import re

from sparse_vis.runtime.errors import UserError

HUB, S3 = "hf://", "s3://"
CLIENTS = {"gs://": "gcsfs", S3: "s3fs"}  # buckets, and the optional package that reads and writes them
PLACES = "workdir, step folder, released file or folder, hf:// address, or pictures-tiny"  # of a model
# A path that may be in a bucket: pathlib.Path, or runtime.bucket.BucketPath.
AnyPath = pathlib.PurePath


def fault(text: str, hub: bool = False, buckets: bool = False) -> str | None:
    """What is wrong with a path, as the end of a sentence that begins with the path; None if it is right.

    `hub`: whether hf:// addresses are allowed. `buckets`: whether gs:// and s3:// are.
    """
    if not text.strip():
        return "is empty; give a path (the current folder is .)"
    if text.startswith("~") and os.path.expanduser(text) == text:
        return "starts with ~ and an unknown user; give the full path, or ./~ for a file of that name"
    scheme = re.match(r"\s*([A-Za-z][A-Za-z0-9+.-]*://|(gs|s3):/)", text, re.IGNORECASE)
    if not scheme or (hub and text.startswith(HUB)):
        return None
    kind, rest = scheme[1].partition(":")[0].lower() + "://", text[len(scheme[0]) :]
    if not (buckets and kind in CLIENTS):
        return "is an address, not a path; mount it as a folder or copy its files, and give that folder"
    if not in_bucket(text):  # gs:/BUCKET would be a folder of this computer
        return f"is not the address of a bucket; write {kind}BUCKET/PATH"
    if not re.match(r"\w[\w.-]*(/|$)", rest):
        return f"names no bucket; write {kind}BUCKET/PATH"
    if odd := re.search(r"[#?*[\]\r\n]|(?<=/)\.\.(?=/|$)", rest):  # tensorstore drops all from # or ? on
        return f"has {odd[0]!r}, which has another meaning in addresses; give a path in the bucket without it"
    if importlib.util.find_spec(package := CLIENTS[kind]) is None:
        return f'needs {package}, which is not installed; run `pip install -e ".[{kind[:2]}]"`'
    return None


def in_bucket(path: str | os.PathLike) -> bool:
    """Whether a path is one of gs:// or s3://."""
    return os.fspath(path).startswith(tuple(CLIENTS))


def expanded(path: str | bytes | os.PathLike, what: str, hub: bool = False, buckets: bool = False) -> str:
    """A path with ~ expanded, because a shell does not expand it after the = of a flag.

    Raises UserError if it is not a path, or if `fault` finds one. `what` is its name in the error, e.g.
    "config.data.path".
    """
    if not isinstance(path, str | bytes | os.PathLike):
        raise UserError(f"{what} is a {type(path).__name__}, not a path; give one.")
    text = os.fsdecode(path)
    if wrong := fault(text, hub, buckets):
        raise UserError(f"{what}={text} {wrong}.")
    return text if text.startswith(HUB) else os.path.expanduser(text)


def as_path(text: str | os.PathLike) -> AnyPath:
    """The text as a pathlib.Path, or as a BucketPath if it is in a bucket."""
    if not in_bucket(text):
        return pathlib.Path(text)
    from sparse_vis.runtime.bucket import BucketPath  # its imports take a moment, and few runs need them

    return BucketPath(os.fspath(text))


def place(text: str, hub: bool = True, buckets: bool = True) -> str:
    """argparse `type` of --checkpoint: a path with ~ expanded, also in a bucket, or an hf:// address."""
    if wrong := fault(text, hub, buckets):
        raise argparse.ArgumentTypeError(f"{text!r} {wrong}")
    return expanded(text, "", hub, buckets)


def is_utf8(path: AnyPath) -> bool:
    """Whether an absolute path is UTF-8; some libraries can neither read nor write below other folders."""
    try:
        str(path.resolve()).encode()
    except UnicodeEncodeError:
        return False
    return True


def folder(text: str) -> str:
    """argparse `type` of a flag that names images: the path with ~ expanded."""
    return place(text, hub=False)


def local(text: str) -> pathlib.Path:
    """argparse `type` of a flag that names a file or folder of this computer: a path with ~ expanded."""
    return pathlib.Path(place(text, hub=False, buckets=False))


def path(text: str) -> AnyPath:
    """argparse `type` of a flag that names a file or folder: a path with ~ expanded, also in a bucket."""
    return as_path(place(text, hub=False))
