"""Whatever a user points at -> configuration and parameters: our checkpoints, released files, the hub."""

from __future__ import annotations

import dataclasses
import functools
import pathlib

import jax
import numpy as np
from ml_collections import ConfigDict

from sparse_vis.build import build_model
from sparse_vis.errors import UserError
from sparse_vis.interop import hub, manifest
from sparse_vis.interop.released import UNUSED, params_to_tensors, tensors_to_params
from sparse_vis.interop.tensors import check_tensors, read_tensors
from sparse_vis.models.stellar import init_params
from sparse_vis.train import checkpoint, settings

# A released file may hold an EMA copy beside the model, and with do_cls false it lacks the CLS head.
_TEACHER = (r"teacher_.*",)
_CLS_HEAD = "cls_cluster_head."


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model as found on disk.

    Attributes:
        config: complete configuration. params: parameter tree, without a tokenizer.
        tokenizer: weights of the VQ tokenizer named beside the model; None if none is named.
        unused: tensors of a released file that the model does not read, under their own names.
    """

    config: ConfigDict
    params: dict
    tokenizer: pathlib.Path | None
    unused: dict[str, np.ndarray]


def abstract_params(config: ConfigDict) -> dict:
    """Shapes and dtypes of the parameter tree of a configuration; allocates nothing."""
    return jax.eval_shape(functools.partial(init_params, build_model(config)), jax.random.key(0))


def released_shapes(config: ConfigDict) -> dict[str, tuple[int, ...]]:
    """Name and shape of every released tensor that a configuration's model reads."""
    # Views of one shared element, so that full-size models cost nothing.
    tree = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), abstract_params(config))
    return {
        name: tensor.shape for name, tensor in params_to_tensors(tree, config.model.patch, copy=False).items()
    }


def read_released(weights: pathlib.Path, entry: dict, name: str) -> Loaded:
    """A released safetensors file.

    Args:
        weights: the file. entry: its manifest entry. name: of the model.

    Raises:
        UserError: a missing, misshapen or unknown tensor, or an architecture we do not know.
    """
    config = manifest.to_config(entry, name)
    found = read_tensors(weights)
    expected = released_shapes(config)
    if not manifest.complete(entry, name)["do_cls"] and not any(k.startswith(_CLS_HEAD) for k in found):
        fresh = init_params(build_model(config), jax.random.key(0))
        found |= {
            k: v for k, v in params_to_tensors(fresh, config.model.patch).items() if k.startswith(_CLS_HEAD)
        }
    check_tensors(found, expected, (*UNUSED, *_TEACHER), weights)
    params = tensors_to_params(
        {name: np.asarray(found[name], np.float32) for name in expected},
        config.model.layers, config.model.decoder.layers,
    )  # fmt: skip
    vq = entry.get("vq_model") or {}
    tokenizer = weights.parent / vq["weights"] if "weights" in vq else None
    unused = {name: array for name, array in found.items() if name not in expected}
    return Loaded(config, jax.tree.map(np.ascontiguousarray, params), tokenizer, unused)


def _pick(models: dict, name: str | None, folder: pathlib.Path | str) -> str:
    if name is None and len(models) == 1:
        return next(iter(models))
    if name not in models:
        wrong = "needs a name" if name is None else f"has no model {name!r}"
        raise UserError(f"{folder} {wrong}; choose one of {', '.join(models)} as load(path, name).")
    return name


def _read_file(path: pathlib.Path) -> Loaded:
    """A .safetensors file with its config.json beside it, or one of the five known names."""
    if not path.is_file():
        raise UserError(f"{path} is not a file; give the path of a released .safetensors file.")
    beside = path.parent / "config.json"
    if not beside.is_file() and path.stem in manifest.KNOWN:
        return read_released(path, {}, path.stem)
    models = manifest.read_manifest(beside)
    names = [name for name, entry in models.items() if entry.get("weights") == path.name]
    if not names:
        raise UserError(f"{beside} names no model with the weights {path.name}; use the config.json released with it.")
    return read_released(path, models[names[0]], names[0])


def _read_hub(address: str, name: str | None, revision: str | None, local_files_only: bool) -> Loaded:
    owner, repository, *rest = address.removeprefix(hub.PREFIX).split("/") + [""]
    if not repository:
        raise UserError(f"{address} is no hub address; write hf://owner/repository/model.")
    fetch = functools.partial(
        hub.fetch, f"{owner}/{repository}", revision=revision, local_files_only=local_files_only
    )
    models = manifest.read_manifest(fetch("config.json"))
    chosen = _pick(models, rest[0] or name, address)
    entry = models[chosen]
    return read_released(fetch(entry["weights"]), entry, chosen)


def read_model(
    path: str | pathlib.Path, name: str | None = None, *, revision: str | None = None, local_files_only: bool = False
) -> Loaded:
    """Read a model from any place that `sparse_vis.load` accepts.

    Args:
        path: workdir or step folder of ours; released .safetensors file with config.json beside it;
            release folder; or hf://owner/repository/model.
        name: of the model in a release of several.
        revision, local_files_only: for the hub.

    Raises:
        UserError: nothing loadable there; names what is wrong and what to do.
    """
    if str(path).startswith(hub.PREFIX):
        return _read_hub(str(path), name, revision, local_files_only)
    path = pathlib.Path(path)
    if path.suffix == ".safetensors":
        return _read_file(path)
    if (path / "config.json").is_file() and not (path / checkpoint.FOLDER).is_dir():
        models = manifest.read_manifest(path / "config.json")
        chosen = _pick(models, name, path)
        if "weights" not in models[chosen]:
            raise UserError(f"the manifest entry of {chosen} in {path} lacks 'weights'; add it to config.json.")
        return read_released(path / models[chosen]["weights"], models[chosen], chosen)
    step = checkpoint.find_step(path)
    config = settings.from_plain(checkpoint.read_config(step), step / "config")
    params = checkpoint.restore_params(step, abstract_params(config))
    tokenizer = pathlib.Path(config.model.tokenizer.path) if config.model.tokenizer.path else None
    return Loaded(config, params, tokenizer, {})
