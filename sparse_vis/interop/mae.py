"""Read MAE backbones as initial weights of the encoder; the MAE's decoder is not used."""

from __future__ import annotations

import contextlib
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sparse_vis.interop import hub
from sparse_vis.interop.families import facebook_mae, transformers_vit
from sparse_vis.interop.formats import shards
from sparse_vis.interop.load import RELEASED, abstract_params, transformers_kind
from sparse_vis.interop.naming import as_transformers_4
from sparse_vis.interop.released import params_to_tensors, tensors_to_params
from sparse_vis.interop.tensors import INDEX, TORCH, check_tensors, listing, read_tensors
from sparse_vis.models.encoder import resize_position_table
from sparse_vis.runtime.errors import UserError

_WHOLE = ("model.safetensors", "pytorch_model.bin")
FILES = tuple(file for name in _WHOLE for file in (name, name + INDEX))
NAMED = {"encoder": "vit"}  # as in transformers
POSITION = "vit.embeddings.position_embeddings"
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
    if transformers_kind(place / "config.json") or (torch and "config.json" not in names):
        raise UserError(
            f"{place} holds none of {', '.join(FILES)} but {listing(names)}; give a weight file itself"
            f"{f', e.g. {place / torch[0]}' if torch else ''}."
        )
    return None


def _fetch(address: str) -> pathlib.Path:
    path = hub.fetch(address, *FILES)
    with contextlib.suppress(UserError):
        hub.fetch(address, "config.json")  # for check_heads; stored beside the weights, as the parts are
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
            f"{path} holds tensors of no known name ({listing(found) or 'none at all'}); give a file "
            f"with those of {known}, or of a released STELLAR model ({RELEASED}, …)."
        )
    check_heads(path.parent / "config.json", config)
    m = config.model
    encoder = {k: v for k, v in abstract_params(config)["encoder"].items() if k != "queries"}
    blank = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), {"encoder": encoder})
    shapes = {name: x.shape for name, x in params_to_tensors(blank, m.patch, copy=False, first=NAMED).items()}
    position = found.get(family.rename(POSITION))
    if position is not None and position.ndim == 3:
        # Any square grid is accepted: the table is resized below.
        side = round(max(position.shape[1] - 1, 0) ** 0.5)
        shapes[POSITION] = (1, 1 + side * side, m.width)
    checked = check_tensors(found, family.expected(shapes), family.unused, path)
    tree = tensors_to_params(family.to_vit(checked, shapes), {"encoder": encoder}, NAMED)["encoder"]
    table, grid = jnp.asarray(tree["position_table"]), (m.image_size // m.patch,) * 2
    return {**tree, "position_table": np.asarray(resize_position_table(table, grid))}


def check_heads(path: pathlib.Path, config: ConfigDict) -> None:
    """Refuse another number of attention heads, which tensor shapes do not show.

    Args:
        path: config.json beside the weights; without it, or if it gives no number, nothing is checked.
        config: of the model to be initialised.

    Raises:
        UserError: the numbers differ.
    """
    try:
        heads = json.loads(path.read_text())["num_attention_heads"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    if heads != config.model.heads:
        raise UserError(
            f"{path} has {heads} attention heads, config.model.heads is {config.model.heads}; "
            f"set it to {heads}."
        )
