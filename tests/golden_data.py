"""The recordings in the folder SPARSE_VIS_GOLDEN (default tests/golden), their models in our classes."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file

from sparse_vis.build import build_loss, build_model
from sparse_vis.interop.load import abstract_params, read_model
from sparse_vis.interop.maskgit import load_tokenizer
from sparse_vis.interop.released import TEACHER, tensors_to_params
from sparse_vis.models.stellar import teacher_params
from sparse_vis.types import Views

FOLDER = pathlib.Path(os.environ.get("SPARSE_VIS_GOLDEN", pathlib.Path(__file__).parent / "golden"))
ABSOLUTE, RELATIVE = 1e-5, 1e-4


def close(ours, recorded, what=""):
    """Outputs agree within 1e-5 absolute + 1e-4 relative."""
    np.testing.assert_allclose(
        np.asarray(ours, np.float64), np.asarray(recorded, np.float64), RELATIVE, ABSOLUTE, err_msg=what
    )


def read(path: pathlib.Path) -> dict:
    """Recorded arrays as jax arrays, which is what annotated functions accept under pytest."""
    return {name: jnp.asarray(array) for name, array in load_file(path).items()}


@functools.cache
def manifest() -> dict:
    """Entries of the recorded models; none where the folder has only single functions."""
    path = FOLDER / "config.json"
    return json.loads(path.read_text())["models"] if path.is_file() else {}


def recording(name: str, kind: str) -> pathlib.Path | None:
    """A model's file of a kind (expected, sizes, trajectory), as its entry names it; else <name>.<kind>."""
    path = FOLDER / manifest()[name].get(kind, f"{name}.{kind}.safetensors")
    return path if path.is_file() else None


@functools.cache
def recorded_keys(name: str) -> frozenset[str]:
    """Names of a model's recorded arrays."""
    path = recording(name, "expected")
    if path is None:
        return frozenset()
    with safe_open(path, "np") as file:
        return frozenset(file.keys())


def models_with(*kinds: str) -> list[str]:
    """Names of the recorded models that have a file of each kind."""
    return [name for name in manifest() if all(recording(name, kind) for kind in kinds)]


def models_recording(*prefixes: str) -> list[str]:
    """Names of the models with at least one array under one of the prefixes."""
    return [name for name in manifest() if any(key.startswith(prefixes) for key in recorded_keys(name))]


def files(kind: str) -> list[pathlib.Path]:
    """The file of single functions (components, views, masks) as a list, empty where the folder has none.

    As parameters of a fixture it leaves no test where there is nothing to compare with.
    """
    return [path for path in [FOLDER / f"{kind}.safetensors"] if path.is_file()]


@functools.cache
def component(kind: str) -> dict:
    """Arrays of a file of single functions; empty where the folder has none."""
    return next(map(read, files(kind)), {})


@dataclasses.dataclass
class Recorded:
    """One recorded model: our module and parameters, and the recorded arrays."""

    entry: dict
    config: object
    model: object
    spec: object
    params: dict
    teacher: dict | None
    tokenizer: dict | None
    expected: dict

    @property
    def views(self) -> Views:
        e, run = self.expected, self.entry["run"]
        batch, side = len(e["in.image"]), run["local_size"]
        visible = e["in.visible_patches"].astype(jnp.int32)
        return Views(
            image=e["in.image"],
            masked=e["in.global_views"],
            visible=visible.reshape(batch, e["in.global_views"].shape[1], -1),
            local=e.get("in.local_views", jnp.zeros((batch, 0, side, side, 3))),
        )


def configure(config, entry: dict, expected: dict) -> None:
    """The settings of the recorded run; terms that it had no heads or views for get no weight."""
    if "run" in entry:
        run = entry["run"]
        config.loss.update(
            student_temperature=run["logits_temp"], sinkhorn_temperature=run["sinkhorn_temp"],
            sinkhorn_iterations=run["sinkhorn_iters"], match_epsilon=run["match_epsilon"],
            match_iterations=run["match_iters"],
        )  # fmt: skip
        config.teacher.enabled = run["momentum_teacher"]
    if not entry.get("do_cls", True):
        config.loss.update(cls_clustering=0.0, cls_masked=0.0, cls_local=0.0)
    if "in.local_views" not in expected:
        config.loss.cls_local = 0.0


@functools.cache
def load_recorded(name: str) -> Recorded:
    entry, path = manifest()[name], recording(name, "expected")
    found, expected = read_model(FOLDER, name), {} if path is None else read(path)
    config = found.config
    configure(config, entry, expected)
    model, tokenizer = build_model(config), None
    if found.tokenizer is not None:
        vqgan, tokenizer = load_tokenizer(found.tokenizer)
        model = model.clone(tokenizer=vqgan)
    teacher = None
    if config.teacher.enabled:
        abstract = teacher_params(abstract_params(config))
        teacher = jax.tree.map(jnp.asarray, tensors_to_params(found.unused, abstract, TEACHER))
    return Recorded(entry, config, model, build_loss(config), found.params, teacher, tokenizer, expected)


def load_trajectory(name: str) -> tuple[dict, dict]:
    """Recorded arrays and settings of a trajectory."""
    path = recording(name, "trajectory")
    with safe_open(path, "np") as file:
        return load_file(path), json.loads(file.metadata()["settings"])
