"""The recordings in the folder SPARSE_VIS_GOLDEN (default tests/golden), and the recorded models in our classes."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib

import jax.numpy as jnp
import numpy as np
from safetensors import safe_open
from safetensors.numpy import load_file

from sparse_vis.build import build_loss, build_model
from sparse_vis.interop.load import read_model
from sparse_vis.interop.maskgit import load_tokenizer
from sparse_vis.interop.released import tensors_to_teacher
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
    return json.loads((FOLDER / "config.json").read_text())["models"]


def models_with(*keys: str) -> list[str]:
    """Names of the recorded models whose manifest entry has all the keys."""
    return [name for name, entry in manifest().items() if all(entry.get(key) for key in keys)]


@functools.cache
def component(file: str) -> dict:
    """A file of single functions (components, views, masks); empty where the folder has none."""
    path = FOLDER / f"{file}.safetensors"
    return read(path) if path.is_file() else {}


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
        visible = e["in.visible_patches"].astype(jnp.int32)
        return Views(
            image=jnp.asarray(e["in.image"]),
            masked=jnp.asarray(e["in.global_views"]),
            visible=jnp.asarray(visible).reshape(run["batch"], run["num_global_views"], -1),
            local=jnp.asarray(e["in.local_views"]),
        )


@functools.cache
def load_recorded(name: str) -> Recorded:
    entry = manifest()[name]
    found = read_model(FOLDER, name)
    config = found.config
    if "run" in entry:
        run = entry["run"]
        config.loss.update(
            student_temperature=run["logits_temp"], sinkhorn_temperature=run["sinkhorn_temp"],
            sinkhorn_iterations=run["sinkhorn_iters"], match_epsilon=run["match_epsilon"],
            match_iterations=run["match_iters"],
        )  # fmt: skip
        config.teacher.enabled = run["momentum_teacher"]
    model, tokenizer = build_model(config), None
    if found.tokenizer is not None:
        vqgan, tokenizer = load_tokenizer(found.tokenizer)
        model = model.clone(tokenizer=vqgan)
    teacher = tensors_to_teacher(found.unused, config.model.layers) if config.teacher.enabled else None
    expected = read(FOLDER / entry["expected"]) if "expected" in entry else {}
    return Recorded(entry, config, model, build_loss(config), found.params, teacher, tokenizer, expected)


def load_trajectory(name: str) -> tuple[dict, dict]:
    """Recorded arrays and settings of a trajectory."""
    path = FOLDER / manifest()[name]["trajectory"]
    with safe_open(path, "np") as file:
        return load_file(path), json.loads(file.metadata()["settings"])
