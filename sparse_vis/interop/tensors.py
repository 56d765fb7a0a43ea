"""Reading named tensors from other people's weight files, and checking that they are the right ones."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import ml_dtypes
import msgpack
import numpy as np
import safetensors
from flax import serialization, traverse_util

from sparse_vis.errors import UserError

SAFETENSORS = (".safetensors",)
TORCH = (".bin", ".pt", ".pth")
MSGPACK = (".msgpack", "")  # the MaskGIT release has no extension
LISTED = 8  # names of each kind in an error message


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """Reads every tensor of a safetensors, torch or Flax msgpack file, chosen by the extension.

    Args:
        path: .safetensors; .bin, .pt, .pth (torch, possibly nested under "state_dict" or "model");
            .msgpack or no extension (Flax; nested names are joined with "/").

    Returns:
        Name to array in the file's own layout and dtype (bfloat16 as ml_dtypes.bfloat16).

    Raises:
        UserError: a missing, damaged or unknown file, or a torch file where torch is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is not a file; give the path of a weight file.")
    suffix = path.suffix.lower()
    if suffix in SAFETENSORS:
        return _read_safetensors(path)
    if suffix in TORCH:
        return _read_torch(path)
    if suffix in MSGPACK:
        return _read_msgpack(path)
    known = ", ".join(name for name in (*SAFETENSORS, *TORCH, *MSGPACK) if name)
    raise UserError(f"{path} has the unknown extension {suffix}; use one of {known} (Flax: or none).")


def check_tensors(
    found: Mapping[str, np.ndarray],
    expected: Mapping[str, tuple[int, ...]],
    known_unused: Iterable[str],
    path: str | Path,
) -> None:
    """Checks that a file holds exactly the tensors a model needs.

    Args:
        found: name to array, as read.
        expected: name to shape.
        known_unused: regular expressions; found names that match one in full may be left unused.
        path: the file, for the message.

    Raises:
        UserError: one sentence on all missing, misshapen and unexpected tensors (8 names of each at most).
    """
    unused = [re.compile(pattern) for pattern in known_unused]
    missing = [name for name in expected if name not in found]
    misshapen = [
        f"{name} is {tuple(found[name].shape)} instead of {tuple(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name].shape) != tuple(shape)
    ]
    extra = [n for n in found if n not in expected and not any(p.fullmatch(n) for p in unused)]
    kinds = (("missing", missing), ("misshapen", misshapen), ("unexpected", extra))
    faults = [f"{len(names)} {kind} ({_listing(names)})" for kind, names in kinds if names]
    if faults:
        raise UserError(
            f"{path} does not hold this model's tensors: {', '.join(faults)}; "
            "give the weight file of the configured architecture."
        )


def _listing(names: list[str]) -> str:
    rest = len(names) - LISTED
    return ", ".join(sorted(names)[:LISTED]) + (f" and {rest} more" if rest > 0 else "")


def _damaged(path: Path, kind: str, cause: Exception) -> UserError:
    # A Git-LFS pointer is what most "damaged" downloads turn out to be.
    with path.open("rb") as file:
        if file.read(40).startswith(b"version https://git-lfs"):
            return UserError(
                f"{path} is a Git-LFS pointer without its tensors; fetch it with `git lfs pull`."
            )
    lines = str(cause).strip().splitlines()
    reason = lines[0].rstrip(".") if lines else type(cause).__name__
    return UserError(f"{path} cannot be read as a {kind} file ({reason}); download or export it again.")


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        with safetensors.safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    # AttributeError and KeyError: element types that numpy lacks, such as float8.
    except (safetensors.SafetensorError, AttributeError, KeyError, ValueError, OSError) as error:
        raise _damaged(path, "safetensors", error) from error


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise UserError(f'{path} is a torch file and needs torch: `pip install -e ".[torch]"`.') from error
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        OSError,
        zipfile.BadZipFile,
    ) as error:
        raise _damaged(path, "torch", error) from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path} holds more than named tensors; save the model's state_dict() alone.")
    return {name: _torch_to_numpy(torch, tensor) for name, tensor in state.items()}


def _torch_to_numpy(torch, tensor) -> np.ndarray:
    tensor = tensor.detach().contiguous()
    if tensor.dtype == torch.bfloat16:  # numpy() refuses it
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def _read_msgpack(path: Path) -> dict[str, np.ndarray]:
    try:
        state = serialization.msgpack_restore(path.read_bytes())
    except (msgpack.UnpackException, ValueError, TypeError, KeyError) as error:
        raise _damaged(path, "Flax msgpack", error) from error
    if not isinstance(state, dict):
        raise UserError(f"{path} is no Flax msgpack of named tensors; give a parameter file.")
    tensors = traverse_util.flatten_dict(state, sep="/")
    if not all(isinstance(value, np.ndarray) for value in tensors.values()):
        raise UserError(f"{path} holds more than named tensors; save the parameters alone.")
    return tensors
