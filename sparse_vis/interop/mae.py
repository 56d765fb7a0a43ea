"""MAE backbones (names `vit.*`) as the encoder's starting point; the MAE's own decoder is not used."""

from __future__ import annotations

import pathlib

import jax
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
        return hub.fetch(address, FILES[0]) if address.count("/") == 1 else None
    place = pathlib.Path(path)
    if place.is_dir():
        return next((place / name for name in FILES if (place / name).is_file()), None)
    return place if place.is_file() else None


def read_backbone(path: pathlib.Path, config: ConfigDict) -> dict:
    """Our encoder without queries from an MAE backbone; another image size resizes the position table.

    Args:
        path: safetensors or torch file. config: of the model to be initialised.

    Returns:
        Tree of float32 numpy arrays.

    Raises:
        UserError: tensors are missing, of another architecture, or unknown.
    """
    found = read_tensors(path)
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
    return {**tree, "position_table": np.asarray(resize_position_table(tree["position_table"], grid))}


def is_backbone(path: pathlib.Path) -> bool:
    """Whether a weight file holds an MAE's names."""
    if path.suffix not in (".safetensors", ".bin", ".pt", ".pth"):
        raise UserError(f"{path} is no weight file; config.init takes .safetensors, .bin, .pt or .pth, or a folder.")
    return any(name.startswith("vit.") for name in read_tensors(path))
