"""Initial parameters of a run, with the weights that config.init names."""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sparse_vis.build import build_model
from sparse_vis.config import settings
from sparse_vis.config.settings import at
from sparse_vis.interop import backbones
from sparse_vis.interop.load import abstract_params, read_model
from sparse_vis.models.encoder import resize_position_table
from sparse_vis.models.stellar import init_params
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.names import path_name

HEADS = ("sparse_head", "cls_head")
LISTED = 4  # tensors in an error message
# Settings of config.model that may differ from those of `init`.
FREE = "image_size", "init_std", "spatial_temperature", "tokenizer.path", "tokenizer.codes", "tokenizer.dtype"


def initial_params(config: ConfigDict) -> dict:
    """Parameters of step 0: random, except for the weights that config.init names.

    A backbone gives the encoder without its queries; its registers, if it has some, become the first queries.
    A model (ours or released) gives everything, or with config.init_heads="fresh" everything but the heads.
    Position tables of another size are resized. Raises UserError for any other difference in architecture.
    """
    given = _read(config) if config.init else {}
    fresh = init_params(build_model(config), jax.random.key(config.seed))
    merged = {name: {**part, **given[name]} if name in given else part for name, part in fresh.items()}
    first, drawn = merged["encoder"]["queries"], fresh["encoder"]["queries"]
    merged["encoder"]["queries"] = np.concatenate([first, drawn[len(first) :]])  # `first` may be registers
    return jax.device_put(merged)  # jnp.asarray would compile a program for every shape


def _read(config: ConfigDict) -> dict:
    # init_name selects a model of a release; backbones have no such names.
    file = None if config.init_name else backbones.find_file(config.init)
    backbone = backbones.read_backbone(file, config) if file is not None else None
    if backbone is not None:
        return {"encoder": backbone}
    found = read_model(config.init, config.init_name or None)
    left_out = HEADS if config.init_heads == "fresh" else ()
    params = {name: part for name, part in found.params.items() if name not in left_out}
    grid = (config.model.image_size // config.model.patch,) * 2
    table = resize_position_table(jnp.asarray(params["encoder"]["position_table"]), grid)
    params["encoder"] = {**params["encoder"], "position_table": table}
    _check(params, found.config, config, left_out)
    return params


def _check(params: dict, theirs: ConfigDict, config: ConfigDict, left_out: tuple[str, ...]) -> None:
    wanted = {name: part for name, part in abstract_params(config).items() if name not in left_out}
    ours, found = (
        {path_name(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (wanted, params)
    )
    wrong = [f"{name} is missing" for name in ours if name not in found]
    wrong += [f"{name} is not part of this model" for name in found if name not in ours]
    wrong += [f"{n} is {found[n]} instead of {ours[n]}" for n in ours if n in found and ours[n] != found[n]]
    for name in ("heads", "decoder.heads", "norm_epsilon"):  # numbers that tensor shapes do not show
        if at(theirs.model, name) != at(config.model, name):
            wrong.append(f"{name} is {at(theirs.model, name)} instead of {at(config.model, name)}")
    if wrong:
        rest = f" and {len(wrong) - LISTED} more" if len(wrong) > LISTED else ""
        theirs, ours = (settings.leaves(c.model) for c in (theirs, config))
        other = [name for name in ours if name not in FREE and theirs.get(name) != ours[name]]
        flags = " ".join(f"--config.model.{name}={theirs[name]}" for name in other)
        raise UserError(
            f"config.init={config.init} has another architecture: {'; '.join(wrong[:LISTED])}{rest}; "
            f"make config.model match it{': ' * bool(flags)}{flags}."
        )
