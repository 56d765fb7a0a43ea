"""What other backbones compute and our encoder does not: read from files beside the weights, or folded in."""

import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sparse_vis.interop.families import Family
from sparse_vis.models.encoder import IMAGENET_MEAN, IMAGENET_STD, resize_position_table
from sparse_vis.runtime.errors import UserError

Pixels = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of R, G, B in [0, 1]
IMAGENET: Pixels = (IMAGENET_MEAN, IMAGENET_STD)
CONFIG, PIXELS = "config.json", "preprocessor_config.json"  # of transformers; timm has the first alone


def check_described(path: pathlib.Path, family: Family, config: ConfigDict) -> None:
    """Raise UserError if a backbone has other heads, LayerNorm epsilon or activation than config.model."""
    beside, m = path.parent / CONFIG, config.model
    found = read_json_if_any(beside)
    activation = found.get("hidden_act") or (found.get("model_args") or {}).get("act_layer") or "gelu"
    if activation != "gelu":
        raise UserError(
            f"{beside} has the activation {activation!r}, but STELLAR's encoder has the exact GELU; start "
            "from another backbone."
        )
    known = {"layer_norm_eps": family.epsilon, **{k: v for k, v in found.items() if v is not None}}
    for key, setting in (("num_attention_heads", "heads"), ("layer_norm_eps", "norm_epsilon")):
        theirs = known.get(key)
        if theirs is not None and theirs != m[setting]:
            source = beside if key in found else f"{path} (by its names {family.title.partition(' (')[0]})"
            raise UserError(
                f"{source} has {key}={theirs}, but config.model.{setting} is {m[setting]}; set it to "
                f"{theirs}."
            )


def pixels_of(path: pathlib.Path) -> Pixels:
    """Mean and standard deviation by which a backbone scales pixels, from a file beside it, or ImageNet's."""
    for name, group, keys in (
        (PIXELS, None, ("image_mean", "image_std")),
        (CONFIG, "pretrained_cfg", ("mean", "std")),
    ):
        found = read_json_if_any(path.parent / name)
        found = (found.get(group) or {}) if group else found
        if found.get("do_normalize") is False:
            return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        if keys[0] in found or keys[1] in found:
            return tuple(_three(found.get(key), path.parent / name, key) for key in keys)
    print(f"note: no file beside {path} says how it scales pixels; ImageNet's scaling is used.", flush=True)
    return IMAGENET


def _three(values: object, path: pathlib.Path, key: str) -> tuple[float, ...]:
    numbers = isinstance(values, list) and all(type(x) in (int, float) for x in values)
    if not numbers or len(values) != 3 or (key.endswith("std") and min(values) <= 0):
        raise UserError(f"{path} has {key}={values!r} instead of three numbers; download it again.")
    return tuple(map(float, values))


def read_json_if_any(path: pathlib.Path) -> dict:
    """The dictionary in a JSON file, {} without the file. Raises UserError if it holds anything else."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a group of settings in JSON; download it again, or delete it.")
    return content


def fold_scales(blocks: dict, attention: np.ndarray, mlp: np.ndarray) -> dict:
    """Blocks with LayerScale in their last linear maps: scale * (x W + b) = x (W scale) + b scale.

    `blocks`: stacked parameters. `attention`, `mlp`: the factors after each, (layers, d).
    """
    scaled = {
        name: {
            "kernel": blocks[name]["kernel"] * scale[:, None, :],
            "bias": blocks[name]["bias"] * scale,
        }
        for name, scale in (("attention_out", attention), ("mlp_out", mlp))
    }
    return {**blocks, **scaled}


def fold_pixels(embedding: dict, theirs: Pixels) -> dict:
    """Change a patch embedding of pixels scaled as `theirs` to one of pixels scaled by IMAGENET, as ours are.

    A pixel x in [0, 1] is t = (x - m') / s' there and u = (x - m) / s here, so t = u s/s' + (m - m')/s'.
    """
    if theirs == IMAGENET:
        return embedding
    (mean, std), (their_mean, their_std) = np.float64(IMAGENET), np.float64(theirs)
    kernel = embedding["kernel"].astype(np.float64).reshape(-1, 3, embedding["kernel"].shape[-1])
    shift = np.einsum("pcd,c->d", kernel, (mean - their_mean) / their_std)
    scaled = (kernel * (std / their_std)[:, None]).reshape(embedding["kernel"].shape)
    return {"kernel": np.float32(scaled), "bias": np.float32(embedding["bias"] + shift)}


def resized_table(table: np.ndarray, grid: tuple[int, int], antialias: bool) -> np.ndarray:
    """A position table for another grid, as transformers resizes it: with registers antialiased, else not."""
    side = math.isqrt(len(table))
    if not antialias or grid == (side, side):
        return np.asarray(resize_position_table(jnp.asarray(table), grid))
    square = jnp.asarray(table).reshape(side, side, -1)
    resized = jax.image.resize(square, (*grid, square.shape[-1]), "cubic", antialias=True)
    return np.asarray(resized).reshape(grid[0] * grid[1], -1)
