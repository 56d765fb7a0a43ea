"""Read configuration and parameters of a model from our checkpoints, released files, or the hub."""

import dataclasses
import difflib
import functools
import math
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sparse_vis.build import build_classifier, build_model
from sparse_vis.config import settings
from sparse_vis.interop import hub, manifest, step_folder
from sparse_vis.interop.families import as_transformers_4
from sparse_vis.interop.released import UNUSED, params_to_tensors, shapes_of, tensors_to_params
from sparse_vis.interop.tensors import SAFETENSORS, TORCH, check_tensors, listing, read_tensors
from sparse_vis.models.classifier import LinearClassifier
from sparse_vis.models.stellar import Stellar, init_params
from sparse_vis.runtime import paths
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.files import file_sha256

# A released file may also hold the EMA teacher, and with do_cls false it lacks the CLS head.
_TEACHER = (r"teacher_(sparse_tokens|(encoder|head|cls_head)\..*)",)
_CLS_HEAD = "cls_cluster_head"
RELEASED = "sparse_tokens"  # a tensor that released STELLAR models have and backbones do not

# Small models in the package: a release folder with a README.md for each, and the data of their training.
SHIPPED = pathlib.Path(__file__).resolve().parent.parent / "checkpoints"
# What their manifests do not say: the source of the training images, and `init_std` of the first weights.
TRAINING = {"pictures-tiny": ("pictures", 0.1), "scenes-tiny": ("scenes", 0.02)}


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A model as read from disk."""

    config: ConfigDict
    params: dict  # without a tokenizer's
    tokenizer: pathlib.Path | None  # its weight file, if the manifest or configuration names one
    unused: dict[str, np.ndarray]  # tensors of a released file that the model does not use
    step: pathlib.Path | None  # step folder, if it is one of our own checkpoints
    teacher: dict | None = None  # EMA parameters of that checkpoint, if requested and present
    classifier: tuple[LinearClassifier, dict] | tuple[()] = ()  # a fine-tuned model's, with its parameters


def abstract_params(config: ConfigDict) -> dict:
    """Shapes and dtypes of the parameter tree of a configuration; allocates nothing."""
    return _abstract_params(build_model(config))


@functools.cache
def _abstract_params(model: Stellar) -> dict:
    return jax.eval_shape(lambda: init_params(model, jax.random.key(0)))


def released_shapes(config: ConfigDict) -> dict[str, tuple[int, ...]]:
    """Name and shape of every released tensor that a configuration's model reads."""
    return shapes_of(abstract_params(config), config.model.patch)


def _check_size(config: ConfigDict, weights: pathlib.Path) -> None:
    """Raise UserError if a model has more parameters than its weight file has bytes."""
    rest = {k: part for k, part in abstract_params(config).items() if k != "cls_head"}  # a file may lack this
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(rest))
    if count > weights.stat().st_size:
        raise UserError(
            f"{weights} ({weights.stat().st_size} bytes) is too small for the {count} parameters of the "
            "model in config.json; download both again."
        )


def read_released(weights: pathlib.Path, entry: dict, name: str) -> Loaded:
    """Read a released weight file of a model with this manifest entry and name."""
    config = manifest.to_config(entry, name)
    found = as_transformers_4(read_tensors(weights))
    _check_size(config, weights)
    expected = released_shapes(config)
    if not manifest.complete(entry, name)["do_cls"] and not any(k.startswith(f"{_CLS_HEAD}.") for k in found):
        # Our model always has this head; it is random here, as models trained without it do not use it.
        head, token = build_model(config).cls_head, jnp.zeros((1, config.model.width), jnp.float32)
        drawn = head.init(jax.random.key(0), token)["params"]
        found |= params_to_tensors({"cls_head": drawn}, config.model.patch)
    checked = check_tensors(found, expected, (*UNUSED, *_TEACHER), weights)
    params = tensors_to_params(checked, abstract_params(config))
    vq = entry.get("vq_model") or {}
    tokenizer = weights.parent / vq["weights"] if "weights" in vq else None
    unused = {name: array for name, array in found.items() if name not in expected}
    return Loaded(config, params, tokenizer, unused, None)


def _entry(
    described: pathlib.Path, name: str | None, where: pathlib.Path | str, weights: str | None = None
) -> tuple[dict, str]:
    """A model's entry in a manifest, and its name; `weights`: only consider entries of this weight file."""
    models = manifest.read_manifest(described)
    if weights is not None:
        models = {key: entry for key, entry in models.items() if entry["weights"] == weights}
    if not models:
        raise UserError(f"{described} names no model with the weights {weights}; use their own config.json.")
    if name is None and len(models) == 1:
        name = next(iter(models))
    if name not in models:
        wrong = "holds several models" if name is None else f"has no model {name!r}"
        raise UserError(f"{where} {wrong}; give one of the names {', '.join(models)}.")
    return models[name], name


def _read_file(path: pathlib.Path, name: str | None) -> Loaded:
    """Read a safetensors or torch file with a config.json beside it, or named like a known model."""
    if path.suffix not in (*SAFETENSORS, *TORCH):
        raise UserError(f"{path} is not a released .safetensors file; give the path of one, or of a folder.")
    beside = path.parent / "config.json"
    if not beside.is_file() and (name or path.stem) in manifest.KNOWN:
        return read_released(path, {}, name or path.stem)
    if not beside.is_file() and RELEASED not in (found := read_tensors(path)):
        raise UserError(
            f"{path} contains no STELLAR model: {RELEASED} is missing, found: "
            f"{listing(found) or 'nothing'}; to start a training from a backbone, give --config.init=FILE."
        )
    return read_released(path, *_entry(beside, name, path, path.name))


def _read_folder(path: pathlib.Path, name: str | None) -> Loaded:
    """Read a release folder with a config.json, or with a file named like a known model."""
    described, weights = path / "config.json", path / f"{name}.safetensors"
    if not described.is_file() and name in manifest.KNOWN and weights.is_file():
        return read_released(weights, {}, name)
    entry, name = _entry(described, name, path)
    return read_released(path / entry["weights"], entry, name)


def _read_hub(address: str, name: str | None, revision: str | None, local_files_only: bool) -> Loaded:
    parts = address.removeprefix(hub.PREFIX).split("/")
    if len(parts) not in (2, 3) or not all(parts):
        raise UserError(f"{address} is not a hub address; write hf://owner/repository/model.")
    repository, options = "/".join(parts[:2]), dict(revision=revision, local_files_only=local_files_only)
    fetch = functools.partial(hub.fetch, repository, **options)
    entry, name = _entry(fetch("config.json"), parts[2] if len(parts) == 3 else name, address)
    loaded = read_released(fetch(entry["weights"]), entry, name)
    if loaded.tokenizer is not None:
        fetch(loaded.tokenizer.name)  # so that it lies beside the weights
    return loaded


def check_shipped(folder: pathlib.Path) -> None:
    """Raise UserError if files of a shipped model do not match its SHA256SUMS."""
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split()
        if file_sha256(folder / name) != digest:
            raise UserError(
                f"{folder / name} is damaged (its checksum differs from SHA256SUMS); install the package "
                "again."
            )


def is_shipped(path: str | pathlib.Path) -> bool:
    """Whether a path names a shipped model, and no file or folder has that name."""
    path = hub.snapshot(paths.as_path(path))
    return path.name == str(path) and not path.exists() and (SHIPPED / path).is_dir()


def _alike(path: pathlib.Path) -> str:
    """For a path that does not exist: " (did you mean …?)", or what its nearest existing parent holds."""
    if paths.in_bucket(path):
        return ""
    if path.is_symlink():
        return f" (it is a link to {os.readlink(path)})"
    shipped = difflib.get_close_matches(str(path), [folder.name for folder in SHIPPED.iterdir()], n=1)
    there = next(parent for parent in path.parents if parent.exists())
    missing = path.relative_to(there).parts[0]
    listed = there.is_dir() and os.access(there, os.R_OK | os.X_OK)
    names = sorted(entry.name for entry in there.iterdir()) if listed else []
    alike = shipped or [str(there / name) for name in difflib.get_close_matches(missing, names, n=1)]
    if alike:
        return f" (did you mean {alike[0]}?)"
    return f" ({there} holds {listing(names)})" if names and there != pathlib.Path() else ""


def read_model(
    path: str | pathlib.Path,
    name: str | None = None,
    *,
    revision: str | None = None,
    local_files_only: bool = False,
    teacher: bool = False,
) -> Loaded:
    """Read a model from any place that `sparse_vis.load` accepts, with its arguments and errors.

    `teacher`: whether to read the EMA teacher of one of our own checkpoints too.
    """
    if not isinstance(path, str | os.PathLike):
        raise UserError(f"{path!r} is not a checkpoint; give a {paths.PLACES}.")
    path = paths.expanded(path, "checkpoint", hub=True, buckets=True)
    if path.startswith(hub.PREFIX):
        return _read_hub(path, name, revision, local_files_only)
    path = hub.snapshot(paths.as_path(path))
    if is_shipped(path):
        if name not in (None, path.name):
            raise UserError(f"{path} has no model {name!r}; leave the name out.")
        check_shipped(SHIPPED / path)
        loaded = _read_folder(SHIPPED / path, None)
        data, of = loaded.config.data, loaded.config.model
        data.source, of.init_std = TRAINING[path.name]
        data.scenes.size = data.pictures.size = of.image_size
        return loaded
    if not path.exists():
        raise UserError(f"checkpoint {path} does not exist{_alike(path)}; give a {paths.PLACES}.")
    if not path.is_dir():
        return _read_file(path, name)
    released = (path / "config.json").is_file() or any(path.glob("*.safetensors"))
    if released and not (path / step_folder.FOLDER).is_dir():  # a workdir has a config.json too
        return _read_folder(path, name)
    if name is not None:
        raise UserError(f"{path} has no model {name!r}; leave the name out.")
    return step_folder.read_newest(path, functools.partial(_read_step, teacher=teacher))


def _read_step(step: pathlib.Path, teacher: bool) -> Loaded:
    config = settings.from_plain(step_folder.read_config(step), step / "config")
    abstract, classifier = abstract_params(config), build_classifier(config)
    wanted = dict(abstract)
    if classifier is not None:
        shapes = {"kernel": (classifier.width, len(classifier.classes)), "bias": (len(classifier.classes),)}
        wanted["classifier"] = {k: jax.ShapeDtypeStruct(shape, jnp.float32) for k, shape in shapes.items()}
    params = step_folder.restore_params(step, wanted)
    own = () if classifier is None else (classifier, params.pop("classifier"))
    copy = step_folder.restore_teacher(step, abstract) if teacher and config.teacher.enabled else None
    tokenizer = paths.as_path(config.model.tokenizer.path) if config.model.tokenizer.path else None
    return Loaded(config, params, tokenizer, {}, step, copy, own)
