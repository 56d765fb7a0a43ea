"""MAE backbones (names `vit.*`) as the encoder's starting point; the MAE's own decoder is not used."""

from __future__ import annotations

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sparse_vis.errors import UserError
from sparse_vis.interop import hub
from sparse_vis.interop.layout import encoder_in, encoder_out
from sparse_vis.interop.load import abstract_params
from sparse_vis.interop.tensors import check_tensors, read_tensors
from sparse_vis.models.encoder import resize_position_table

FILES = ("model.safetensors", "pytorch_model.bin")
UNUSED = (r"decoder\..*", r"vit\.pooler\..*")


def find_file(path: str) -> pathlib.Path | None:
    """The weight file meant by a path, a folder, or hf://owner/repository; None if it is no MAE release.

    Raises:
        UserError: a hub address that cannot be fetched.
    """
    if path.startswith(hub.PREFIX):
        address = path.removeprefix(hub.PREFIX)
        return _fetch(address) if address.count("/") == 1 else None
    place = pathlib.Path(path)
    if place.is_dir():
        return next((place / name for name in FILES if (place / name).is_file()), None)
    return place if place.is_file() else None


def _fetch(address: str) -> pathlib.Path:
    try:
        return hub.fetch(address, FILES[0])
    except UserError:
        try:
            return hub.fetch(address, FILES[1])
        except UserError:
            pass
        raise


def read_backbone(path: pathlib.Path, config: ConfigDict) -> dict | None:
    """Our encoder without queries from an MAE backbone; another image size resizes the position table.

    Args:
        path: safetensors or torch file. config: of the model to be initialised.

    Returns:
        Tree of float32 numpy arrays; None if the file's names are not those of an MAE.

    Raises:
        UserError: an unreadable file, or tensors that are missing, of another architecture, or unknown.
    """
    found = read_tensors(path)
    if not any(name.startswith("vit.") for name in found):
        return None
    check_heads(path.parent / "config.json", config)
    m = config.model
    encoder = {k: v for k, v in abstract_params(config)["encoder"].items() if k != "queries"}
    blank = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), encoder)
    expected = {name: x.shape for name, x in encoder_out(blank, "vit", m.patch).items()}
    position = "vit.embeddings.position_embeddings"
    if position in found and found[position].ndim == 3:
        # Any square grid will do: the table is resized below.
        side = round((found[position].shape[1] - 1) ** 0.5)
        expected[position] = (1, 1 + side * side, m.width)
    check_tensors(found, expected, UNUSED, path)
    tree = encoder_in({name: np.asarray(found[name], np.float32) for name in expected}, "vit", m.layers)
    grid = (m.image_size // m.patch,) * 2
    return {
        **tree,
        "position_table": np.asarray(resize_position_table(jnp.asarray(tree["position_table"]), grid)),
    }


def check_heads(path: pathlib.Path, config: ConfigDict) -> None:
    """Refuse another number of attention heads, which no tensor's shape shows.

    Args:
        path: config.json beside the weights; nothing is checked if it is not there or names no heads.
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
