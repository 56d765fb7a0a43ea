"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file under a temporary name, make sure it is on disk, then rename it.

    Args:
        path: of the file; whatever was there is replaced. content: text is written as UTF-8, surrogates
            (of paths that are not) escaped with a backslash.

    Raises:
        OSError: it cannot be written; what was there is untouched and the temporary file is gone.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(content.encode(errors="backslashreplace") if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
