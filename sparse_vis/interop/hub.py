"""Files on the Hugging Face hub, through the optional huggingface_hub."""

import functools
import pathlib
import re

from sparse_vis.runtime import network
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.paths import HUB as PREFIX

_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]|\.(?!\.))*"  # an owner or a repository, without ".."


def fetch(
    address: str, *filenames: str, revision: str | None = None, local_files_only: bool = False
) -> pathlib.Path:
    """Local path of the first of `filenames` that "owner/repository" has, downloaded if not in the cache.

    Raises UserError if the address is invalid, huggingface_hub is missing, or no file can be fetched.
    """
    if not re.fullmatch(f"{_NAME}/{_NAME}", address):
        raise UserError(f"{PREFIX}{address} names no repository; write {PREFIX}owner/repository/model.")
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(
            f'reading {PREFIX}{address} needs huggingface_hub; run `pip install -e ".[hub]"`, or place '
            f"{filenames[0]} and the other files of https://huggingface.co/{address} in a folder and give "
            "that."
        ) from None
    away = "" if local_files_only else network.unreachable()
    get = functools.partial(
        huggingface_hub.hf_hub_download, revision=revision, local_files_only=local_files_only or bool(away)
    )
    reasons = []
    for filename in filenames:
        try:
            return pathlib.Path(get(address, filename))
        except Exception as error:
            lines = str(error).strip().splitlines() or ["no reason given"]
            reasons.append(away or f"{type(error).__name__}: {lines[0][:120].rstrip(' .')}")
    raise UserError(
        f"{filenames[0]} of {PREFIX}{address} could not be fetched ({reasons[0]}); "
        f"without a network, place {filenames[0]} and the other files of https://huggingface.co/{address} "
        "in a folder and give that folder."
    )


def snapshot(path: pathlib.Path) -> pathlib.Path:
    """The snapshot folder of a repository in the hub's cache, if `path` is a folder above it; else `path`.

    Of several snapshots, that of branch main is taken. Raises UserError if none of them is, or there are
    none.
    """
    top = path.parent if path.name == "snapshots" else path
    if not (top.name.startswith("models--") and (top / "snapshots").is_dir()):
        return path
    main = top / "refs" / "main"
    folders = sorted(folder for folder in (top / "snapshots").iterdir() if folder.is_dir())
    chosen = [f for f in folders if main.is_file() and f.name == main.read_text().strip()] or folders
    if len(chosen) != 1:
        names = f": {', '.join(map(str, chosen))}" if chosen else ""
        raise UserError(f"{top} holds {len(chosen)} snapshots; give one of them{names}.")
    return chosen[0]
