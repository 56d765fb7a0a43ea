"""The error sentence for a weight file that cannot be read."""

from __future__ import annotations

import os
from pathlib import Path

from sparse_vis.runtime.errors import UserError

# First bytes -> what most apparently damaged downloads turn out to be.
_DISGUISES = (
    (b"version https://git-lfs", "is a Git-LFS pointer without its tensors; fetch it with `git lfs pull`"),
    (b"<", "is a web page instead of a weight file; download the file itself, not the page that shows it"),
    (b"PK", "is a zip archive, as torch.save and NumPy write; give it the extension .pt if torch wrote it"),
    (b"\x1f\x8b", "is a gzip archive; unpack it"),
    (b"GGUF", "is a GGUF file, whose quantized values are not read; give the safetensors or torch file"),
    (b"\x89HDF", "is an HDF5 file (TensorFlow, Keras); give the safetensors or torch file"),
)


def damaged(path: Path, kind: str, cause: Exception | str) -> UserError:
    """The error for a file that cannot be read; its first bytes may tell what it really is.

    Args:
        path: of the file. kind: format as which it was read. cause: why that failed.
    """
    if os.path.getsize(path) == 0:
        return UserError(f"{path} is empty; download or export it again.")
    with path.open("rb") as file:
        start = file.read(64)
    for magic, sentence in _DISGUISES:
        if start.lstrip().startswith(magic) and (magic != b"PK" or kind != "torch"):
            return UserError(f"{path} {sentence}.")
    if kind != "safetensors" and start[8:10] == b'{"':
        return UserError(f"{path} is a safetensors file by its content; give it the extension .safetensors.")
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    reason = lines[0].rstrip(". ")[:200]
    return UserError(f"{path} cannot be read as a {kind} file ({reason}); download or export it again.")
