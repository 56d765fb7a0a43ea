"""Files on the Hugging Face hub, through the optional huggingface_hub."""

from __future__ import annotations

import pathlib

from sparse_vis.errors import UserError
from sparse_vis.runtime.paths import HUB as PREFIX


def fetch(
    address: str, filename: str, *, revision: str | None = None, local_files_only: bool = False
) -> pathlib.Path:
    """Local path of one file of a hub repository, downloaded if it is not in the cache.

    Args:
        address: "owner/repository". filename: in the repository.
        revision: branch, tag or commit. local_files_only: never use the network.

    Raises:
        UserError: huggingface_hub is not installed, or the file cannot be had.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(
            f'reading {PREFIX}{address} needs huggingface_hub; run `pip install -e ".[hub]"`, or place '
            f"{filename} and the other files of https://huggingface.co/{address} in a folder and give that."
        ) from None
    try:
        return pathlib.Path(
            huggingface_hub.hf_hub_download(
                address, filename, revision=revision, local_files_only=local_files_only
            )
        )
    except Exception as error:
        lines = str(error).strip().splitlines() or ["no reason given"]
        reason = lines[0][:120].rstrip(" .")
        raise UserError(
            f"{filename} of {PREFIX}{address} could not be fetched ({type(error).__name__}: {reason}); "
            f"without a network, place {filename} and the other files of https://huggingface.co/{address} "
            "in a folder and give that folder."
        ) from error
