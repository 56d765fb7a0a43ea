"""config.json of the released form ⇄ our configuration (method.md section 9)."""

from __future__ import annotations

import json
import pathlib

from ml_collections import ConfigDict

from sparse_vis.config import default_config
from sparse_vis.errors import UserError
from sparse_vis.models.vqgan import VQGAN

# What the released manifest leaves to the backbone's name: embed_dim -> (layers, heads).
BACKBONES = {768: (12, 12), 1024: (24, 16), 1280: (32, 16)}
_RELEASED = {
    "image_size": 224, "num_sparse_tokens": 16, "spatial_temp": 0.06, "do_cls": True, "num_clusters": 16384,
    "recon_type": "vq", "num_decoder_layers": 6, "prototype_dim": 256, "predictor_layers": 2,
    "predictor_hidden_size": 2048, "decoder_hidden_size": 512, "decoder_attention_heads": 8,
    "decoder_intermediate_size": 2048, "vq_model": None,
}  # fmt: skip
# The five released models, in case a weight file comes without its manifest.
KNOWN = {
    "stellar-b16": {"embed_dim": 768, "patch_size": 16},
    "stellar-l16": {"embed_dim": 1024, "patch_size": 16},
    "stellar-h16": {"embed_dim": 1280, "patch_size": 14},
    "stellar-b8": {"embed_dim": 768, "patch_size": 16, "num_sparse_tokens": 8},
    "stellar-b24": {"embed_dim": 768, "patch_size": 16, "num_sparse_tokens": 24},
}


def read_manifest(path: pathlib.Path) -> dict:
    """The `models` of a config.json.

    Args:
        path: of config.json.

    Raises:
        UserError: no such file, no JSON, or no models with their weights' names in it.
    """
    try:
        models = json.loads(path.read_text())["models"]
        lacking = [name for name, entry in models.items() if not isinstance(entry["weights"], str)]
    except FileNotFoundError:
        raise UserError(f"{path} is missing; place the release's config.json beside its weights.") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        models, lacking = {}, []
    if not models or lacking:
        raise UserError(
            f"{path} is no manifest of released models, {{'models': {{name: {{'weights': file, ...}}}}}}; "
            "download it again."
        )
    return models


def complete(entry: dict, name: str) -> dict:
    """A manifest entry with every size filled in.

    Args:
        entry: as read. name: of the model, for messages.

    Raises:
        UserError: a size that is needed and cannot be derived, or an unsupported choice.
    """
    given = {key: value for key, value in entry.items() if value is not None}
    full = {**_RELEASED, **KNOWN.get(name, {}), **given}
    for key in ("embed_dim", "patch_size"):
        if key not in full:
            raise UserError(f"the manifest entry of {name} lacks {key!r}; add it to config.json.")
    width = full["embed_dim"]
    if "num_hidden_layers" not in full or "num_attention_heads" not in full:
        if width not in BACKBONES:
            raise UserError(
                f"the manifest entry of {name} has embed_dim {width}, which is no released size; "
                "add num_hidden_layers and num_attention_heads to config.json."
            )
        layers, heads = BACKBONES[width]
        full = {"num_hidden_layers": layers, "num_attention_heads": heads, **full}
    full = {"intermediate_size": 4 * width, **full}
    if full["predictor_layers"] != 2 or full["recon_type"] not in ("pixel", "vq"):
        raise UserError(
            f"the manifest entry of {name} asks for predictor_layers={full['predictor_layers']} and "
            f"recon_type={full['recon_type']!r}; supported are 2, and 'pixel' or 'vq'."
        )
    return full


def to_config(entry: dict, name: str) -> ConfigDict:
    """Our configuration of a manifest entry, float32, otherwise the published recipe.

    Args:
        entry: as in the manifest. name: of the model.

    Raises:
        UserError: as `complete`.
    """
    config = default_config()
    config.name = name
    try:
        _fill(config, complete(entry, name))
    except (TypeError, KeyError) as error:
        raise UserError(
            f"the manifest entry of {name} has a value of a wrong kind ({error}); correct it."
        ) from None
    config.efficiency.dtype = "float32"
    return config


def _fill(config: ConfigDict, e: dict) -> None:
    config.model.update(
        image_size=e["image_size"], patch=e["patch_size"], width=e["embed_dim"],
        layers=e["num_hidden_layers"], heads=e["num_attention_heads"], mlp_dim=e["intermediate_size"],
        tokens=e["num_sparse_tokens"],
        spatial_temperature=e["spatial_temp"], target=e["recon_type"],
    )  # fmt: skip
    config.model.decoder.update(
        width=e["decoder_hidden_size"], layers=e["num_decoder_layers"], heads=e["decoder_attention_heads"],
        mlp_dim=e["decoder_intermediate_size"],
    )  # fmt: skip
    config.model.prototypes.update(
        count=e["num_clusters"], dim=e["prototype_dim"], hidden=e["predictor_hidden_size"]
    )
    if e["vq_model"]:
        config.model.tokenizer.codes = e["vq_model"]["num_embeddings"]
    if e["recon_type"] == "vq":
        config.loss.reconstruction = 0.05


def vq_entry(tokenizer: VQGAN, weights: str) -> dict:
    """A manifest entry's `vq_model`.

    Args:
        tokenizer: its sizes. weights: file name of its tensors.
    """
    return {
        "weights": weights, "num_channels": 3, "resolution": 256, "dropout": 0.0,
        "channel_mult": list(tokenizer.channel_mult), "num_resolutions": len(tokenizer.channel_mult),
        "hidden_channels": tokenizer.hidden_channels, "num_res_blocks": tokenizer.num_res_blocks,
        "z_channels": tokenizer.z_channels, "num_embeddings": tokenizer.num_embeddings,
    }  # fmt: skip


def from_config(config: ConfigDict, weights: str) -> dict:
    """The manifest entry of one of our configurations, every size written out.

    Args:
        config: complete configuration. weights: file name of the tensors.
    """
    m = config.model
    return {
        "weights": weights, "backbone": None, "do_cls": True, "predictor_layers": 2, "vq_model": None,
        "embed_dim": m.width, "patch_size": m.patch, "image_size": m.image_size,
        "num_hidden_layers": m.layers, "num_attention_heads": m.heads, "intermediate_size": m.mlp_dim,
        "num_sparse_tokens": m.tokens, "spatial_temp": m.spatial_temperature, "recon_type": m.target,
        "num_clusters": m.prototypes.count, "prototype_dim": m.prototypes.dim,
        "predictor_hidden_size": m.prototypes.hidden, "num_decoder_layers": m.decoder.layers,
        "decoder_hidden_size": m.decoder.width, "decoder_attention_heads": m.decoder.heads,
        "decoder_intermediate_size": m.decoder.mlp_dim,
    } | (
        {"vq_model": {"num_embeddings": m.tokenizer.codes}} if m.target == "vq" else {}
    )  # fmt: skip
