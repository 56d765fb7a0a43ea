"""Read MAE backbones as initial weights of the encoder; the MAE's decoder is not used."""

from __future__ import annotations

import contextlib
import json
import pathlib
import re

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sparse_vis.interop import hub
from sparse_vis.interop.families import facebook_mae, transformers_vit
from sparse_vis.interop.formats import shards
from sparse_vis.interop.load import RELEASED, abstract_params
from sparse_vis.interop.naming import as_transformers_4
from sparse_vis.interop.released import shapes_of, tensors_to_params
from sparse_vis.interop.tensors import INDEX, TORCH, check_tensors, listing, read_tensors
from sparse_vis.models.encoder import resize_position_table
from sparse_vis.runtime.errors import UserError

_WHOLE = ("model.safetensors", "pytorch_model.bin")
FILES = tuple(file for name in _WHOLE for file in (name, name + INDEX))
FAMILIES = (transformers_vit.MAE, facebook_mae.ORIGINAL_MAE, transformers_vit.ALONE)


def find_file(path: str) -> pathlib.Path | None:
    """The weight file of a path, a folder, or hf://owner/repository; None if it cannot be an MAE backbone.

    Raises:
        UserError: a hub address that cannot be fetched, or a folder of transformers without weights.
    """
    if path.startswith(hub.PREFIX):
        address = path.removeprefix(hub.PREFIX)
        return _fetch(address) if address.count("/") == 1 else None
    place = hub.snapshot(pathlib.Path(path))
    if not place.is_dir():
        return place if place.is_file() else None
    if found := next((place / name for name in FILES if (place / name).is_file()), None):
        return found
    names = [entry.name for entry in place.iterdir()]
    torch = [name for name in names if name.endswith(TORCH)]
    if _read(place / "config.json").get("model_type") or (torch and "config.json" not in names):
        raise UserError(
            f"{place} holds none of {', '.join(FILES)} but {listing(names)}; give a weight file itself"
            f"{f', e.g. {place / torch[0]}' if torch else ''}."
        )
    return None


def _fetch(address: str) -> pathlib.Path:
    path = hub.fetch(address, *FILES)
    with contextlib.suppress(UserError):
        hub.fetch(address, "config.json")  # its number of heads is checked; it lies beside the weights
    if path.name.endswith(INDEX):
        for name in shards(path):
            hub.fetch(address, name)
    return path


def read_backbone(path: pathlib.Path, config: ConfigDict) -> dict | None:
    """Our encoder's parameters, without queries, from an MAE backbone; the position table is resized.

    Args:
        path: safetensors or torch file, or the index of several. config: of the model to be initialised.

    Returns:
        Tree of float32 numpy arrays; None if the file holds a released STELLAR model instead.

    Raises:
        UserError: an unreadable file; tensors that are missing or unknown, or of another architecture.
    """
    found = as_transformers_4(read_tensors(path))
    family = next((f for f in FAMILIES if any(re.fullmatch(f.telltale, name) for name in found)), None)
    if family is None:
        if RELEASED in found:
            return None
        known = ", ".join(f.title for f in FAMILIES)
        raise UserError(
            f"{path} contains no tensors with known names (found: {listing(found) or 'none at all'}); give a "
            f"file with those of {known}, or of a released STELLAR model ({RELEASED}, …)."
        )
    m, beside = config.model, path.parent / "config.json"
    heads = _read(beside).get("num_attention_heads", m.heads)  # shapes of tensors do not show it
    if heads != m.heads:
        raise UserError(
            f"{beside} has {heads} attention heads, config.model.heads is {m.heads}; set it to {heads}."
        )
    encoder = {k: v for k, v in abstract_params(config)["encoder"].items() if k != "queries"}
    expected = shapes_of({"encoder": encoder}, m.patch, family.names)
    positions = family.names["encoder/positions"]
    if positions in found and found[positions].ndim == 3:
        # Any square grid is accepted: the table is resized below.
        side = round(max(found[positions].shape[1] - 1, 0) ** 0.5)
        expected[positions] = (1, 1 + side * side, m.width)
    checked = check_tensors(found, expected, family.unused, path)
    tree = tensors_to_params(checked, {"encoder": encoder}, family.names)["encoder"]
    table, grid = jnp.asarray(tree["position_table"]), (m.image_size // m.patch,) * 2
    return {**tree, "position_table": np.asarray(resize_position_table(table, grid))}


def _read(path: pathlib.Path) -> dict:
    """A config.json of transformers; empty if there is none, or none that can be read."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        content = {}
    return content if isinstance(content, dict) else {}
