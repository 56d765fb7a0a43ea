"""`config.init`: the weights a run starts from."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from sparse_vis.build import build_model
from sparse_vis.errors import UserError
from sparse_vis.interop import mae
from sparse_vis.interop.load import read_model
from sparse_vis.models.encoder import resize_position_table
from sparse_vis.models.stellar import init_params
from sparse_vis.train.mesh import path_name

HEADS = ("sparse_head", "cls_head")


def _check_shapes(params: dict, fresh: dict, path: str) -> None:
    ours, theirs = (
        {path_name(p): x.shape for p, x in jax.tree_util.tree_leaves_with_path(tree)} for tree in (fresh, params)
    )
    wrong = [
        f"{name} is {theirs.get(name)} instead of {ours.get(name)}"
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]
    if wrong:
        raise UserError(
            f"config.init={path} has another architecture: {'; '.join(wrong[:4])}"
            f"{f' and {len(wrong) - 4} more' if len(wrong) > 4 else ''}; make config.model match it."
        )


def initial_params(config: ConfigDict) -> dict:
    """Parameters of step 0: random, with what `config.init` names put in place.

    An MAE backbone gives the encoder without its queries. A model (ours or released) gives everything,
    or everything but the heads with config.init_heads="fresh". Another image size resizes the position table.

    Args:
        config: complete configuration.

    Returns:
        float32 parameter tree.

    Raises:
        UserError: nothing loadable there, or another architecture.
    """
    fresh = init_params(build_model(config), jax.random.key(config.seed))
    if not config.init:
        return fresh
    file = mae.find_file(config.init)
    if file is not None and mae.is_backbone(file):
        return {**fresh, "encoder": {**fresh["encoder"], **mae.read_backbone(file, config)}}
    params = read_model(config.init, config.init_name or None).params
    if config.init_heads == "fresh":
        params = {**params, **{head: fresh[head] for head in HEADS}}
    grid = (config.model.image_size // config.model.patch,) * 2
    table = resize_position_table(jnp.asarray(params["encoder"]["position_table"]), grid)
    params = {**params, "encoder": {**params["encoder"], "position_table": table}}
    _check_shapes(params, fresh, config.init)
    return jax.tree.map(jnp.asarray, params)
