"""Read named tensors from weight files, and check that they are the expected model's."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from sparse_vis.interop.formats import read_msgpack, read_safetensors, read_torch, shards
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.files import on_disk
from sparse_vis.runtime.paths import AnyPath, as_path

SAFETENSORS = (".safetensors",)
TORCH = (".bin", ".pt", ".pth", ".ckpt", ".tar")
MSGPACK = (".msgpack", "")  # the MaskGIT release has no extension
INDEX = ".index.json"  # index of a model saved in several files
LISTED = 8  # most names of each kind in an error message
FLOATS = (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)
# Parts of names that DistributedDataParallel, torch.compile, FSDP and activation checkpointing insert.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
_SHARD = re.compile(r"(.+)-\d+-of-(?!0*1\.)\d+(\.\w+)")


def read_tensors(path: str | AnyPath) -> dict[str, np.ndarray]:
    """Read all tensors of a safetensors, torch or Flax msgpack file, told apart by the extension.

    From the index of several files, the tensors of all files are read. Torch tensors may be nested under
    one of `formats.KEYS`, beside e.g. an optimizer; nested names of Flax are joined with "/".

    Returns:
        Name, without WRAPPERS -> array in the file's layout and dtype (bfloat16 as ml_dtypes.bfloat16).

    Raises:
        UserError: the file is missing, damaged or of unknown kind, or needs torch, which is not installed.
    """
    path = as_path(path)
    if not path.is_file():
        raise UserError(f"{path} is not a file; give the path of a weight file.")
    if path.name.endswith(INDEX):
        found: dict[str, np.ndarray] = {}
        for name in shards(path):
            found |= read_tensors(path.parent / name)
        return found
    suffix = path.suffix.lower()
    if suffix in (*SAFETENSORS, *TORCH, *MSGPACK):
        with on_disk(path) as file:
            if suffix in MSGPACK:
                return read_msgpack(file)
            read = read_safetensors if suffix in SAFETENSORS else read_torch
            return _without_wrappers(read(file), file)
    known = ", ".join(name for name in (*SAFETENSORS, *TORCH, *MSGPACK) if name)
    raise UserError(f"{path} has the unknown extension {suffix}; use one of {known} (Flax: or none).")


def _without_wrappers(found: dict[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    """Remove WRAPPERS from names, and `model.` if all names begin with it."""
    parts = {name: [part for part in name.split(".") if part not in WRAPPERS] for name in found}
    outer = all(len(p) > 1 and p[0] == "model" for p in parts.values())
    plain: dict[str, np.ndarray] = {}
    for name, array in found.items():
        short = ".".join(parts[name][outer:])
        if short in plain:
            raise UserError(
                f"{path} contains {short} twice (once with a wrapper's prefix, such as module.); save the "
                "state_dict() of one model only."
            )
        plain[short] = array
    return plain


def check_tensors(
    found: Mapping[str, np.ndarray],
    expected: Mapping[str, tuple[int, ...]],
    known_unused: Iterable[str],
    path: str | Path,
) -> dict[str, np.ndarray]:
    """The expected tensors as float32, after checking that a file holds these and no others, all finite.

    Args:
        found: name -> array, as read. expected: name -> shape. path: the file, for messages.
        known_unused: regular expressions; tensors whose whole name matches one may be left unused.

    Raises:
        UserError: lists missing, misshapen and unexpected tensors (at most 8 names of each), or tensors
            that are not floating-point or contain NaN or infinite values.
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
    faults = [f"{len(names)} {kind} ({listing(names)})" for kind, names in kinds if names]
    if faults:
        index = index_of(path)
        whole = f"it is one of several parts: give {index}" if index else ""
        raise UserError(
            f"{path} does not hold this model's tensors: {', '.join(faults)}; "
            f"{whole or 'give the weight file of the configured architecture'}."
        )
    others = [f"{n} is {found[n].dtype}" for n in expected if found[n].dtype not in FLOATS]
    if others:
        raise UserError(
            f"{path} contains {len(others)} tensors that are not floating-point ({listing(others)}); give "
            "the weights before quantization."
        )
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite, and is refused below
        tensors = {name: np.asarray(found[name], np.float32) for name in expected}
    wrong = {name: x.size - np.count_nonzero(np.isfinite(x)) for name, x in tensors.items()}
    broken = [f"{name}: {count} of {tensors[name].size}" for name, count in wrong.items() if count]
    if broken:
        raise UserError(
            f"{path} contains NaN or infinite values in {len(broken)} tensors ({listing(broken)}); the "
            "file is damaged or its training diverged: download or export it again."
        )
    return tensors


def index_of(path: str | Path) -> str:
    """For a file that by its name is one of several parts, the name of their index; else ""."""
    part = _SHARD.fullmatch(Path(path).name)
    return f"{part[1]}{part[2]}{INDEX}" if part else ""


def listing(names: Iterable[str]) -> str:
    """The first LISTED names in sorted order, and how many more there are."""
    names = sorted(names)
    rest = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {rest} more" if rest > 0 else "")
