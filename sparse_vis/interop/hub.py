"""Files on the Hugging Face hub, through the optional huggingface_hub."""

from __future__ import annotations

import pathlib

from sparse_vis.errors import UserError

PREFIX = "hf://"


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
            f'reading {PREFIX}{address} needs huggingface_hub; run `pip install -e ".[hub]"`, or download the '
            "files by hand and give their folder."
        ) from None
    try:
        return pathlib.Path(
            huggingface_hub.hf_hub_download(
                address, filename, revision=revision, local_files_only=local_files_only
            )
        )
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{filename} of {PREFIX}{address} could not be fetched ({type(error).__name__}: {reason}); without a "
            f"network, place {filename} and the other files of https://huggingface.co/{address} in a folder "
            "and give that folder."
        ) from error
