"""Torch files -> named arrays, without running any code from them.

torch.load(weights_only=True) calls only torch's own constructors of tensors. Other objects in a checkpoint
(an argparse.Namespace, settings of a trainer) become empty placeholders with the same class name: no foreign
module is imported, no foreign code runs.
"""

from __future__ import annotations

import contextlib
import re
import warnings
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np

from sparse_vis.interop.damaged import damaged
from sparse_vis.runtime.errors import UserError

# Keys under which trainers store the model's tensors in a checkpoint, the outer key first.
KEYS = ("state_dict", "model", "model_state_dict", "module")
SAVE = "save the model's state_dict() alone"
# Class named in torch's message, which is not shown: it advises weights_only=False, which runs foreign code.
_FOREIGN = re.compile(r"GLOBAL (\S+)")
# No code of a file is ever run; but a file that names these functions is an attack, not a model.
_ATTACK = re.compile(
    r"builtins\.(eval|exec|compile|open|__import__)|(os|posix|subprocess|runpy|ctypes|importlib|pty)\..*"
)


class _StandIn:
    """Placeholder for an object of an unknown class; accepts any arguments and state, and ignores them."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """Named tensors of a torch file: a state_dict, or a checkpoint that also holds an optimizer and settings.

    Args:
        path: of a file written by torch.save.

    Raises:
        UserError: torch is not installed; the file is damaged or has no named tensors; or a tensor is sparse,
            quantized, without values, or of an element type that NumPy lacks.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(f'{path} is a torch file and needs torch: `pip install -e ".[torch]"`.') from error
    state = _named_tensors(_load(torch, path), path)
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor):
            raise UserError(
                f"{path} holds more than named tensors: {name} is a {type(tensor).__name__}; {SAVE}."
            )
    return {str(name): _array(torch, tensor, name, path) for name, tensor in state.items()}


def _changed_records(path: Path) -> list[str]:
    """Entries of a torch zip file that differ from their CRC-32, which torch itself does not check."""
    changed = []
    with contextlib.suppress(Exception), zipfile.ZipFile(path) as archive:  # else torch says what is wrong
        for name in archive.namelist():
            try:
                with archive.open(name) as record:
                    while record.read(1 << 20):
                        pass
            except zipfile.BadZipFile:
                changed.append(name)
        if len(changed) == len(archive.namelist()):
            return []  # written without checksums: torch.serialization.set_crc32_options(False)
    return changed


def _load(torch, path: Path):
    if changed := _changed_records(path):
        raise UserError(
            f"{path} is damaged: {changed[0]} is not what its checksum says ({len(changed)} parts in all); "
            "download or export it again."
        )
    # Foreign classes can be listed in advance for zip files only, which torch has written since 1.6.
    foreign = []
    with contextlib.suppress(Exception):
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    if attack := next(filter(_ATTACK.fullmatch, sorted(foreign)), None):
        raise UserError(
            f"{path} asks to run {attack}, which no model does; nothing was run: delete that file."
        )
    stand_ins = [(type(name.rpartition(".")[2], (_StandIn,), {}), name) for name in foreign]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(stand_ins):
            warnings.simplefilter("ignore")
            return torch.load(path, weights_only=True, map_location="cpu")
    # On damaged or hostile bytes, the parser raises exceptions of any type.
    except Exception as error:
        text = str(error)
        if "TorchScript" in text:
            raise UserError(f"{path} is a TorchScript program, not a file of tensors; {SAVE}.") from error
        if named := _FOREIGN.search(text):
            raise UserError(
                f"{path} holds {named[1]}, which only running the file's code would read, and that is never "
                f"done; {SAVE}."
            ) from error
        reason = unpickler[1] if (unpickler := re.search(r"WeightsUnpickler error: (.*)", text)) else text
        clear = reason.strip() and "weights_only" not in reason
        raise damaged(path, "torch", reason if clear else "not what torch.save writes") from error


def _named_tensors(state, path: Path) -> dict:
    for key in KEYS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if isinstance(state, dict):
        return state
    kind = type(state).__name__
    raise UserError(f"{path} holds a {kind} instead of named tensors; {SAVE}.")


def _array(torch, tensor, name: str, path: Path) -> np.ndarray:
    """A tensor's values as NumPy array without a copy, also of expanded tensors (stride 0)."""

    def refused(what: str, remedy: str) -> UserError:
        return UserError(f"{path} cannot be read: {name} {what}; {remedy}.")

    if tensor.is_quantized:
        raise refused("is quantized", "save it as tensor.dequantize()")
    if tensor.is_nested or tensor.layout != torch.strided:
        raise refused("is sparse or nested", "save it as tensor.to_dense()")
    if tensor.is_meta:
        raise refused("is on the device meta, without values", "save it after loading the weights")
    try:
        tensor = tensor.detach().resolve_conj().resolve_neg()
        if tensor.dtype == torch.bfloat16:  # numpy() refuses it
            return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()
    except Exception as error:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise refused(f"is a tensor of {kind} that NumPy cannot hold", "save it as float32") from error
