"""The --output folder of a tool: its lock, the error for a full disk, and how shards are continued."""

import contextlib
import sys
from collections.abc import Callable, Container, Iterator
from contextlib import AbstractContextManager
from typing import Any

from sparse_vis.config.settings import differences
from sparse_vis.runtime import lock
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.files import CHECKSUM, holds_files, write_json
from sparse_vis.runtime.paths import AnyPath, in_bucket
from sparse_vis.runtime.tools import check_folder


@contextlib.contextmanager
def in_one_sentence(output: AnyPath, kept: str = "") -> Iterator[None]:
    """Context in which errors of the disk, e.g. a full one, become a UserError about the folder `output`.

    `kept`: what the same command continues from, e.g. "complete shards". With it, Ctrl-C ends the tool with a
    sentence too.
    """
    kept = f" ({kept} are kept)" if kept else ""
    try:
        yield
    except OSError as error:
        there = str(error.filename)
        if in_bucket(there) and not there.startswith(str(output)):
            raise  # what was read, not what is written
        raise UserError(
            f"{output} cannot be written ({error}); give another --output folder, or free disk space and "
            f"repeat the command{kept}."
        ) from None
    except KeyboardInterrupt:
        if not kept:
            raise
        sys.exit(f"interrupted: repeat the command to continue{kept}")


@contextlib.contextmanager
def writing(
    output: AnyPath, doing: str, kept: str = "", hold: Callable[..., AbstractContextManager] = lock.hold
) -> Iterator[None]:
    """Context of `in_one_sentence` in which this tool alone writes to its --output folder.

    `hold` is `lock.hold`, or `distributed.held` if several processes write; `doing` is its argument. Raises
    UserError at once if the folder cannot be written.
    """
    check_folder(output)
    with hold(output, doing), in_one_sentence(output, kept):
        yield


def begin_or_continue(
    path: AnyPath,
    new: dict[str, Any],
    read: Callable[[AnyPath], dict],
    free: Container[str],
    ours: Container[str] = (),
) -> dict[str, Any]:
    """The description of a folder of shards: that of an earlier call if the folder has one, else `new`.

    Args:
        path: of the description, a JSON file in the folder, which is written if it is missing.
        new: description of this call. read: returns the checked content of the file.
        free: fields that may differ. ours: names of files that may be there without a description.

    Raises:
        UserError: the folder holds other files, or shards of other images, settings or an earlier version.
    """
    folder = path.parent
    if not path.exists():
        if holds_files(folder, ours):
            raise UserError(f"folder {folder} contains other files; give --output a new or empty folder.")
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, new)
        return new
    found = read(path)
    if CHECKSUM not in found:
        raise UserError(
            f"{path} was written by an earlier version, without checksums: the shards beside it can be "
            "read but not continued; give --output another folder."
        )
    saved, now = ({k: v for k, v in x.items() if k not in free and k != CHECKSUM} for x in (found, new))
    if changed := differences(saved, now):
        raise UserError(
            f"folder {folder} contains shards of other images or settings ({'; '.join(changed)}); use the "
            "same ones, or give --output another folder."
        )
    return found
