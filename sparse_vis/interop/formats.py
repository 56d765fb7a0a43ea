"""Read named arrays from files of safetensors, torch and Flax, without running code from them.

Safetensors files have checksums only if we wrote them: in others, a flipped bit that gives a finite number is
not noticed. torch.load(weights_only=True) calls only torch's own constructors of tensors. Other objects in a
checkpoint, such as a trainer's settings, become empty placeholders of the same class name: no foreign module
is imported.
"""

import contextlib
import json
import re
import struct
import warnings
import zipfile
import zlib
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors
from flax import serialization, traverse_util
from safetensors.numpy import save_file

from sparse_vis.runtime.errors import UserError, reason_of

CHECKSUMS = "sparse_vis.crc32"  # key of the file's metadata: JSON of tensor name -> checksum
# Keys under which trainers store the model's tensors in a checkpoint, the outer key first.
KEYS = ("state_dict", "model", "model_state_dict", "module", "teacher")  # teacher: of DINO
SAVE = "save only the model's state_dict()"
# The class in torch's message. The message is not shown, as it advises weights_only=False, which runs code.
_FOREIGN = re.compile(r"GLOBAL (\S+)")
# A file that names these functions is an attack, not a model; none of them is ever called.
_ATTACK = re.compile(
    r"builtins\.(eval|exec|compile|open|__import__)|(os|posix|subprocess|runpy|ctypes|importlib|pty)\..*"
)
# First bytes of what most apparently damaged downloads really are, and the sentence about it.
_DISGUISES = (
    (b"version https://git-lfs", "is a Git-LFS pointer without its tensors; fetch it with `git lfs pull`"),
    (b"<", "is a web page instead of a weight file; download the file itself, not the page that shows it"),
    (b"PK", "is a zip archive, as torch.save and NumPy write; give it the extension .pt if torch wrote it"),
    (b"\x1f\x8b", "is a gzip archive; unpack it"),
    (b"GGUF", "is a GGUF file, whose quantized values are not read; give the safetensors or torch file"),
    (b"\x89HDF", "is an HDF5 file (TensorFlow, Keras); give the safetensors or torch file"),
)
# A map of names, as Flax writes it with msgpack: its length, then the first name.
_FLAX = re.compile(rb"([\x80-\x8f]|\xde..|\xdf....)([\xa0-\xbf]|\xd9.)[A-Za-z_]{2}", re.DOTALL)


def damaged(path: Path, kind: str, cause: Exception | str) -> UserError:
    """The UserError for a file that cannot be read as `kind`; its first bytes may tell what it really is."""
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        return UserError(f"{path} is empty; download or export it again.")
    for magic, sentence in _DISGUISES:
        if start.lstrip().startswith(magic) and (magic != b"PK" or kind != "torch"):
            return UserError(f"{path} {sentence}.")
    if kind != "safetensors" and start[8:10] == b'{"':
        return UserError(f"{path} is a safetensors file by its content; give it the extension .safetensors.")
    if kind != "Flax msgpack" and start[8:9] != b"{" and _FLAX.match(start):
        return UserError(f"{path} is a Flax msgpack file; give the safetensors or torch file instead.")
    reason = reason_of(cause).rstrip(". ")[:200]
    return UserError(f"{path} cannot be read as a {kind} file ({reason}); download or export it again.")


def _changed(path: Path, names: list[str], what: str) -> UserError:
    return UserError(
        f"{path} is damaged: the checksum of {names[0]} does not match ({len(names)} {what} in all); "
        "download or export it again."
    )


def _crc32(array: np.ndarray) -> int:
    """CRC-32 of an array's element type, shape and bytes."""
    start = zlib.crc32(f"{array.dtype.name}{array.shape}".encode())
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8), start)


def write_safetensors(tensors: dict[str, np.ndarray], path: Path, meta: dict[str, str] | None = None) -> None:
    """Write tensors, their checksums and metadata; equal input gives equal bytes. Raises OSError."""
    sums = {name: _crc32(array) for name, array in tensors.items()}
    try:
        save_file(tensors, path, {"format": "pt", CHECKSUMS: json.dumps(sums), **(meta or {})})
    except safetensors.SafetensorError as error:
        raise OSError(str(error)) from error
    # The library writes the metadata's keys in random order.
    with path.open("r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(length)
        if len(text) == length:
            file.seek(8)
            file.write(text)


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a file. Raises UserError if it is damaged or has an element type that NumPy lacks."""

    def tensor(file, name: str) -> np.ndarray:
        try:
            return file.get_tensor(name)
        except (AttributeError, KeyError, TypeError):  # e.g. float8
            raise _unknown_type(path, name, file.get_slice(name).get_dtype()) from None

    try:
        with safetensors.safe_open(path, framework="np") as file:
            found = {name: tensor(file, name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            sums = json.loads((file.metadata() or {}).get(CHECKSUMS, "{}"))
        changed = [name for name, value in sums.items() if name in found and _crc32(found[name]) != value]
    except UserError:
        raise
    except Exception as error:  # on damage, of any type
        raise damaged(path, "safetensors", error) from error
    changed += sorted(sums.keys() ^ found.keys()) if sums else []
    if changed:
        raise _changed(path, changed, "tensors")
    return found


def _unknown_type(path: Path, name: str, kind: str) -> UserError:
    what = f"{name} is a tensor of {kind} that NumPy cannot hold"
    return UserError(f"{path} cannot be read: {what}; save it as float32.")


def shards(index: Path) -> list[str]:
    """File names in a *.safetensors.index.json. Raises UserError if it is damaged or names other folders."""
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        inside = all(name and name == Path(name).name for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise damaged(index, "index of shards", "no weight_map of names") from error
    if not names or not inside:
        raise UserError(f"{index} names no files, or files outside its folder; download it again.")
    return names


def read_msgpack(path: Path) -> dict[str, np.ndarray]:
    """Named tensors of a Flax parameter file, nested names joined with "/". Raises UserError."""
    try:
        state = serialization.msgpack_restore(path.read_bytes())
        tensors = traverse_util.flatten_dict(state, sep="/") if isinstance(state, dict) else None
    except Exception as error:  # on damaged bytes, the parser raises exceptions of any type
        raise damaged(path, "Flax msgpack", error) from error
    if tensors is None:
        raise UserError(f"{path} is not a Flax msgpack of named tensors; give a parameter file.")
    if not all(isinstance(value, np.ndarray) for value in tensors.values()):
        raise UserError(f"{path} contains more than a dictionary of tensors; save the parameters only.")
    return tensors


class _StandIn:
    """Placeholder for an object of an unknown class; accepts any arguments and state, and ignores them."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """Named tensors of a file of torch.save: a state_dict, or a checkpoint that also holds other things.

    Raises UserError if torch is not installed; the file is damaged or has no named tensors; or a tensor is
    sparse, quantized, without values, or of an element type that NumPy lacks.
    """
    try:
        import torch
    except ImportError as error:
        raise UserError(f'{path} is a torch file and needs torch: `pip install -e ".[torch]"`.') from error
    state = _load(torch, path)
    for key in KEYS:
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict):
        raise UserError(
            f"{path} contains a {type(state).__name__} instead of a dictionary of tensors; {SAVE}."
        )
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor):
            kind = type(tensor).__name__
            raise UserError(f"{path} contains more than a dictionary of tensors: {name} is a {kind}; {SAVE}.")
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
        raise _changed(path, changed, "parts")
    # Foreign classes can be listed in advance for zip files only, which torch has written since 1.6.
    foreign = []
    with contextlib.suppress(Exception):
        foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    if attack := next(filter(_ATTACK.fullmatch, sorted(foreign)), None):
        raise UserError(
            f"{path} tries to run {attack} when it is loaded, which a model file never needs; nothing "
            "was run: delete the file."
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
                f"{path} contains {named[1]}, which can only be read by running code from the file, and "
                f"this is never done; {SAVE}."
            ) from error
        reason = unpickler[1] if (unpickler := re.search(r"WeightsUnpickler error: (.*)", text)) else text
        clear = reason.strip() and "weights_only" not in reason
        raise damaged(path, "torch", reason if clear else "not what torch.save writes") from error


def _array(torch, tensor, name: str, path: Path) -> np.ndarray:
    """A tensor's values as a NumPy array, without a copy; expanded tensors (stride 0) stay so."""

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
        raise _unknown_type(path, name, str(tensor.dtype).removeprefix("torch.")) from error
