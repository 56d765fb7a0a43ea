"""Read other projects' ViTs as initial weights of the encoder: MAE, ViT, DINO, DINOv2, MoCo v3, timm."""

import contextlib
import math
import re

import numpy as np
from ml_collections import ConfigDict

from sparse_vis.interop import foreign, hub
from sparse_vis.interop.families import FAMILIES, Family, as_transformers_4
from sparse_vis.interop.formats import shards
from sparse_vis.interop.load import RELEASED, abstract_params
from sparse_vis.interop.released import shapes_of, tensors_to_params
from sparse_vis.interop.tensors import INDEX, TORCH, check_tensors, index_of, listing, read_tensors
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.paths import AnyPath, as_path

_WHOLE = ("model.safetensors", "pytorch_model.bin")
FILES = tuple(file for name in _WHOLE for file in (name, name + INDEX))
FOREIGN = (".msgpack", ".h5")  # weights of Flax and TensorFlow
# If a file has several backbones, the one with one of these words in its prefix is read (DINO; MoCo v3).
PREFERRED = ("teacher", "base_encoder")


def find_file(path: str) -> AnyPath | None:
    """The weight file of a path, a folder, or hf://owner/repository; None if it cannot be a backbone.

    Raises UserError for an address that cannot be fetched, or a folder of transformers without weights.
    """
    if path.startswith(hub.PREFIX):
        address = path.removeprefix(hub.PREFIX)
        return _fetch(address) if address.count("/") == 1 else None
    place = hub.snapshot(as_path(path))
    if not place.is_dir():
        return place if place.is_file() else None
    if found := next((place / name for name in FILES if (place / name).is_file()), None):
        return found
    names = [entry.name for entry in place.iterdir()]
    torch, flax = ([name for name in names if name.endswith(ends)] for ends in (TORCH, FOREIGN))
    if flax and not torch:
        raise UserError(
            f"{place} holds only weights of Flax or TensorFlow ({listing(flax)}); give the "
            "safetensors or torch file of the same model."
        )
    described = foreign.read_json_if_any(place / foreign.CONFIG)
    if described.get("model_type") or ((torch or flax) and foreign.CONFIG not in names):  # of transformers
        raise UserError(
            f"{place} holds none of {', '.join(FILES)} but {listing(names)}; give a weight file itself"
            f"{f', e.g. {place / torch[0]}' if torch else ''}."
        )
    return None


def _fetch(address: str) -> AnyPath:
    path = hub.fetch(address, *FILES)
    with contextlib.suppress(UserError):
        for name in (foreign.CONFIG, foreign.PIXELS):  # `read_backbone` reads them beside the weights
            hub.fetch(address, name)
    if path.name.endswith(INDEX):
        for name in shards(path):
            hub.fetch(address, name)
    return path


def read_backbone(path: AnyPath, config: ConfigDict) -> dict | None:
    """Our encoder's parameters, float32 arrays, from a backbone; the position table is resized.

    Registers become the first queries, as both are learned tokens without position: with these queries alone,
    the encoder computes what the backbone computes. Without registers the tree has no queries.

    Args:
        path: safetensors or torch file, or the index of several. config: of the model to be initialised.

    Returns:
        The tree; None if the file holds a released STELLAR model instead.

    Raises:
        UserError: the file is unreadable; tensors are missing, unknown, or of another architecture.
    """
    if path.name.endswith(FOREIGN):
        raise UserError(
            f"{path} holds weights of Flax or TensorFlow; give the safetensors or torch file of the same "
            "model."
        )
    if index := index_of(path):
        raise UserError(f"{path} is one of several parts: give {index}.")
    found = as_transformers_4(read_tensors(path))
    if RELEASED in found:
        return None
    family, found = _choose(found, path)
    if unlike := family.unlike(found):
        raise UserError(f"{path} {unlike}, which our encoder cannot represent; start from another backbone.")
    foreign.check_described(path, family, config)
    m = config.model
    encoder = {k: v for k, v in abstract_params(config)["encoder"].items() if k != "queries"}
    expected = shapes_of({"encoder": encoder}, m.patch, family.names)
    positions = family.names["encoder/positions"]
    if positions in found and found[positions].ndim == 3:
        rows = found[positions].shape[1]
        if family.patches_alone and math.isqrt(rows) ** 2 == rows:  # the class token has no position
            found[positions] = np.pad(found[positions], ((0, 0), (1, 0), (0, 0)))
        # Any square grid is accepted: the table is resized below.
        side = round(max(found[positions].shape[1] - 1, 0) ** 0.5)
        expected[positions] = (1, 1 + side * side, m.width)
    scales = [[name.format(layer=i) for i in range(m.layers)] for name in family.scales]
    scales = [names for names in scales if names[0] in found]
    expected |= {name: (m.width,) for names in scales for name in names}
    registers = next((name for name in family.registers if name in found), None)
    if registers is not None:
        expected[registers] = (1, _count(found[registers], m.tokens, path), m.width)
    checked = check_tensors(found, expected, family.unused, path)
    tree = tensors_to_params(checked, {"encoder": encoder}, family.names)["encoder"]
    tree["patch_embedding"] = foreign.fold_pixels(tree["patch_embedding"], foreign.pixels_of(path))
    if scales:
        attention, mlp = (np.stack([checked[name] for name in names]) for names in scales)
        tree["trunk"]["blocks"] = foreign.fold_scales(tree["trunk"]["blocks"], attention, mlp)
    if registers is not None:
        tree["queries"] = checked[registers][0]
    grid = (m.image_size // m.patch,) * 2
    table = foreign.resized_table(tree["position_table"], grid, registers is not None)
    return {**tree, "position_table": table}


def _choose(found: dict[str, np.ndarray], path: AnyPath) -> tuple[Family, dict[str, np.ndarray]]:
    """The family of a file, with the prefix of its backbone, and the tensors that have this prefix."""
    for family in FAMILIES:
        anchor = re.compile(rf"((?:\w+\.)*){re.escape(family.anchor)}")
        prefixes = sorted(match[1] for name in found if (match := anchor.fullmatch(name)))
        if not prefixes:
            continue
        liked = ([p for p in prefixes if word in p] for word in PREFERRED)
        chosen = next((few for few in liked if len(few) == 1), prefixes)
        if len(chosen) > 1:
            raise UserError(
                f"{path} contains {len(chosen)} backbones ({listing(f'{p}*' for p in chosen)}); save the "
                "state_dict() of one of them."
            )
        if len(prefixes) > 1:
            print(f"note: {path} has {len(prefixes)} backbones; {chosen[0]}* is read.", flush=True)
        inside = {name: array for name, array in found.items() if name.startswith(chosen[0])}
        return family.under(chosen[0]), inside
    known = ", ".join(f.title for f in FAMILIES)
    raise UserError(
        f"{path} contains no tensors with known names (found: {listing(found) or 'none at all'}); give a "
        f"file with those of {known}, or of a released STELLAR model ({RELEASED}, …)."
    )


def _count(registers: np.ndarray, queries: int, path: AnyPath) -> int:
    """Number of register tokens; raises UserError if there are more than queries."""
    count = registers.shape[1] if registers.ndim == 3 else 0
    if count > queries:
        raise UserError(
            f"{path} has {count} registers, each of which becomes a semantic token, but config.model.tokens "
            f"is {queries}; set it to at least {count}, or start from the backbone without registers."
        )
    return count
