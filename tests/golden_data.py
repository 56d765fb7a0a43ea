"""The recorded models: what the manifest names, in our classes."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from sparse_vis.build import build_loss, build_model
from sparse_vis.config import default_config
from sparse_vis.interop.released import tensors_to_params, tensors_to_teacher
from sparse_vis.types import Views

FOLDER = pathlib.Path(os.environ.get("SPARSE_VIS_GOLDEN", pathlib.Path(__file__).parent / "golden"))
ABSOLUTE, RELATIVE = 1e-5, 1e-4


def close(ours, recorded, what=""):
    """Outputs agree within 1e-5 absolute + 1e-4 relative."""
    np.testing.assert_allclose(
        np.asarray(ours, np.float64), np.asarray(recorded, np.float64), RELATIVE, ABSOLUTE, err_msg=what
    )


def manifest() -> dict:
    return json.loads((FOLDER / "config.json").read_text())["models"]


def config_of(entry: dict):
    """Our configuration for a manifest entry, float32."""
    config = default_config()
    with config.unlocked():
        m = config.model
        m.update(
            image_size=entry["image_size"], patch=entry["patch_size"], width=entry["embed_dim"],
            layers=entry["num_hidden_layers"], heads=entry["num_attention_heads"],
            mlp_dim=entry["intermediate_size"], tokens=entry["num_sparse_tokens"],
            spatial_temperature=entry["spatial_temp"], target=entry["recon_type"],
        )  # fmt: skip
        m.decoder.update(
            width=entry["decoder_hidden_size"], layers=entry["num_decoder_layers"],
            heads=entry["decoder_attention_heads"], mlp_dim=entry["decoder_intermediate_size"],
        )  # fmt: skip
        m.prototypes.update(
            count=entry["num_clusters"], dim=entry["prototype_dim"], hidden=entry["predictor_hidden_size"]
        )
        config.efficiency.dtype = "float32"
        if entry["vq_model"]:
            m.tokenizer.codes = entry["vq_model"]["num_embeddings"]
            config.loss.reconstruction = 0.05
        if "run" in entry:
            run = entry["run"]
            config.loss.update(
                student_temperature=run["logits_temp"], sinkhorn_temperature=run["sinkhorn_temp"],
                sinkhorn_iterations=run["sinkhorn_iters"], match_epsilon=run["match_epsilon"],
                match_iterations=run["match_iters"],
            )  # fmt: skip
            config.teacher.enabled = run["momentum_teacher"]
    return config


@dataclasses.dataclass
class Recorded:
    """One recorded model: our module and parameters, and the recorded arrays."""

    name: str
    entry: dict
    config: object
    model: object
    spec: object
    params: dict
    teacher: dict | None
    expected: dict

    @property
    def views(self) -> Views:
        e, run = self.expected, self.entry["run"]
        return Views(
            image=jnp.asarray(e["in.image"]),
            masked=jnp.asarray(e["in.global_views"]),
            visible=jnp.asarray(e["in.visible_patches"]).reshape(run["batch"], run["num_global_views"], -1),
            local=jnp.asarray(e["in.local_views"]),
        )


def load_recorded(name: str) -> Recorded:
    entry = manifest()[name]
    config = config_of(entry)
    tensors = load_file(FOLDER / entry["weights"])
    params = tensors_to_params(tensors, entry["num_hidden_layers"], entry["num_decoder_layers"])
    teacher = tensors_to_teacher(tensors, entry["num_hidden_layers"]) if config.teacher.enabled else None
    expected = load_file(FOLDER / entry["expected"]) if "expected" in entry else {}
    return Recorded(
        name, entry, config, build_model(config), build_loss(config), params, teacher, expected
    )
