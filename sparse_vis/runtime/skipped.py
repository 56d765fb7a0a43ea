"""Images that cannot be used, and skipped.txt: one line for each that a command or a run left out."""

from collections.abc import Iterable

from sparse_vis.runtime.errors import explained
from sparse_vis.runtime.files import write_whole
from sparse_vis.runtime.names import escaped
from sparse_vis.runtime.paths import AnyPath

FILE = "skipped.txt"
ON_ERROR = ("stop", "skip")  # what to do with an unusable image
MAX_PIXELS = 2**27  # of an image, unless its source sets another limit; 0.5 GiB in Pillow's memory
Skips = list[tuple[str, str]]  # (name, reason) of images that could not be used


def lines(skips: Iterable[tuple[str, str]]) -> list[str]:
    """A line for each image, without duplicates: escaped name, tab, reason."""
    return list(dict.fromkeys(f"{escaped(name)}\t{' '.join(reason.split())}\n" for name, reason in skips))


def append(folder: AnyPath, new: Iterable[str]) -> None:
    """Append to the folder's skipped.txt the lines that it lacks. Raises UserError if this is impossible."""
    if not (new := [line.encode(errors="backslashreplace") for line in new]):
        return
    path = folder / FILE
    there = path.read_bytes() if path.exists() else b""
    known = set(there.splitlines(keepends=True))
    if left := [line for line in new if line not in known]:
        with explained(OSError, f"{path} cannot be written", "fix this and repeat the command."):
            write_whole(path, there + b"".join(left))
