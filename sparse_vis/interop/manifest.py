"""Convert between a released config.json and our configuration (docs/method.md section 9)."""

import pathlib
from typing import NoReturn

from ml_collections import ConfigDict

from sparse_vis.config.contradictions import of_model
from sparse_vis.config.defaults import default_config
from sparse_vis.config.ranges import ALLOWED, FLAG, Choice, Form, Range, shown
from sparse_vis.config.settings import at
from sparse_vis.models.vqgan import VQGAN
from sparse_vis.runtime.errors import UserError, explained
from sparse_vis.runtime.files import CHECKSUM, read_json

# Key in a released config.json -> setting in config.model.
SETTINGS = {
    "image_size": "image_size", "patch_size": "patch", "embed_dim": "width", "num_hidden_layers": "layers",
    "num_attention_heads": "heads", "intermediate_size": "mlp_dim", "num_sparse_tokens": "tokens",
    "spatial_temp": "spatial_temperature", "recon_type": "target", "num_clusters": "prototypes.count",
    "prototype_dim": "prototypes.dim", "predictor_hidden_size": "prototypes.hidden",
    "layer_norm_eps": "norm_epsilon",
    "num_decoder_layers": "decoder.layers", "decoder_hidden_size": "decoder.width",
    "decoder_attention_heads": "decoder.heads", "decoder_intermediate_size": "decoder.mlp_dim",
}  # fmt: skip
# Sizes that released manifests do not state: embed_dim -> (layers, heads).
BACKBONES = {768: (12, 12), 1024: (24, 16), 1280: (32, 16)}
_RELEASED = {
    "image_size": 224, "num_sparse_tokens": 16, "spatial_temp": 0.06, "do_cls": True, "num_clusters": 16384,
    "recon_type": "vq", "num_decoder_layers": 6, "prototype_dim": 256, "predictor_layers": 2,
    "predictor_hidden_size": 2048, "decoder_hidden_size": 512, "decoder_attention_heads": 8,
    "decoder_intermediate_size": 2048, "vq_model": None, "layer_norm_eps": 1e-12,
}  # fmt: skip
# The five released models, for weight files without a manifest.
KNOWN = {
    "stellar-b16": {"embed_dim": 768, "patch_size": 16},
    "stellar-l16": {"embed_dim": 1024, "patch_size": 16},
    "stellar-h16": {"embed_dim": 1280, "patch_size": 14},
    "stellar-b8": {"embed_dim": 768, "patch_size": 16, "num_sparse_tokens": 8},
    "stellar-b24": {"embed_dim": 768, "patch_size": 16, "num_sparse_tokens": 24},
}


def read_manifest(path: pathlib.Path) -> dict:
    """The `models` of a config.json. Raises UserError if it is missing, damaged, or names no weight files."""
    remedy = f'download or export it again, or delete its line "{CHECKSUM}" if the edit was intended.'
    with explained((OSError, ValueError), f"{path} is damaged or was edited by hand", remedy):
        if not path.exists():
            raise UserError(f"{path} is missing; place the release's config.json beside its weights.")
        content = read_json(path)
    models, kind = content.get("models"), content.get("model_type")
    if kind and not models:
        raise UserError(
            f"{path} belongs to a {kind} of transformers, which is not a STELLAR model; to start a "
            "training from a ViT or ViTMAE, give --config.init=FOLDER."
        )
    try:
        right = models and all(n.isprintable() and isinstance(e["weights"], str) for n, e in models.items())
    except (KeyError, TypeError, AttributeError):
        right = False
    if not right:
        raise UserError(
            f"{path} is not a manifest of released models, {{'models': {{name: {{'weights': file, "
            "...}}}; download it again."
        )
    for name, entry in models.items():
        _check_inside(entry["weights"], name)
        vq = entry.get("vq_model")
        if isinstance(vq, dict) and "weights" in vq:
            _check_inside(vq["weights"], name)
    return models


def _check_inside(file: object, name: str) -> None:
    """Raise UserError if a file name is not a relative path, or leads out of the release's folder by "..".

    Links are not followed, because in the hub's cache every file is a link to another folder.
    """
    parts = pathlib.PurePosixPath(file).parts if isinstance(file, str) and file.isprintable() else ()
    if not parts or {"/", "//", ".."} & {*parts} or max(map(len, parts)) > 200:
        _refuse(name, f"names the file {shown(file)}, which is outside the release's folder")


def _refuse(name: str, what: str) -> NoReturn:
    raise UserError(f"the manifest entry of {name} {what}; correct config.json, or download it again.")


def complete(entry: dict, name: str) -> dict:
    """A manifest entry with every size filled in. Raises UserError for one outside of config/ranges.py."""
    for key in ("spatial_temp", "predictor_layers"):  # tensor shapes do not show these
        if key in entry and entry[key] is None:
            _refuse(name, f"has no value for {key}")
    given = {key: value for key, value in entry.items() if value is not None}
    if given.get("decoder_hidden_size", 512) != 512 and "decoder_attention_heads" not in given:
        _refuse(
            name,
            "lacks decoder_attention_heads, which is needed because its decoder width is not a released one",
        )
    full = {**_RELEASED, **KNOWN.get(name, {}), **given}
    for key in sorted({"embed_dim", "patch_size"} - full.keys()):
        raise UserError(f"the manifest entry of {name} lacks {key!r}; add it to config.json.")
    _check(full, "embed_dim", ALLOWED["model.width"], name)
    width = full["embed_dim"]
    if "num_hidden_layers" not in full or "num_attention_heads" not in full:
        if width not in BACKBONES:
            raise UserError(
                f"the manifest entry of {name} has embed_dim {width}, which is not a released size; add "
                "num_hidden_layers and num_attention_heads to config.json."
            )
        layers, heads = BACKBONES[width]
        full = {"num_hidden_layers": layers, "num_attention_heads": heads, **full}
    full = {"intermediate_size": 4 * width, **full}
    for key, setting in SETTINGS.items():
        _check(full, key, ALLOWED[f"model.{setting}"], name)
    _check(full, "do_cls", FLAG, name)
    if full["predictor_layers"] != 2:
        _refuse(name, f"asks for predictor_layers={shown(full['predictor_layers'])}; only 2 is supported")
    if full["vq_model"] is not None:
        vq = full["vq_model"]
        if not isinstance(vq, dict) or "num_embeddings" not in vq:
            _refuse(name, f"has vq_model={shown(vq)}, which is not a group of settings with num_embeddings")
        _check(vq, "num_embeddings", ALLOWED["model.tokenizer.codes"], name)
    return full


def _check(entry: dict, key: str, allowed: Range | Choice | Form, name: str) -> None:
    if sentence := allowed.fault(entry[key]):
        raise UserError(
            f"the manifest entry of {name} in config.json has {key}={shown(entry[key])}, which {sentence}."
        )


def to_config(entry: dict, name: str) -> ConfigDict:
    """Our configuration of an entry's model, in float32, otherwise as published; raises as `complete`."""
    full = complete(entry, name)
    config = default_config()
    config.name = name
    config.update_from_flattened_dict({f"model.{ours}": full[key] for key, ours in SETTINGS.items()})
    if full["vq_model"]:
        config.model.tokenizer.codes = full["vq_model"]["num_embeddings"]
    if config.model.target == "vq":
        config.loss.reconstruction = 0.05
    for sentence in of_model(config):
        _refuse(name, f"describes an impossible model: {sentence}")
    config.efficiency.dtype = "float32"
    return config


def vq_entry(tokenizer: VQGAN, weights: str) -> dict:
    """The `vq_model` of a manifest entry: the tokenizer's sizes, and its weight file's name."""
    return {
        "weights": weights, "num_channels": 3, "resolution": 256, "dropout": 0.0,
        "channel_mult": list(tokenizer.channel_mult), "num_resolutions": len(tokenizer.channel_mult),
        "hidden_channels": tokenizer.hidden_channels, "num_res_blocks": tokenizer.num_res_blocks,
        "z_channels": tokenizer.z_channels, "num_embeddings": tokenizer.num_embeddings,
    }  # fmt: skip


def from_config(config: ConfigDict, weights: str) -> dict:
    """The manifest entry of one of our configurations, with every size; `weights`: the weight file's name."""
    entry = {key: at(config.model, setting) for key, setting in SETTINGS.items()}
    if entry["layer_norm_eps"] == _RELEASED["layer_norm_eps"]:  # published manifests do not have this key
        del entry["layer_norm_eps"]
    vq = {"num_embeddings": config.model.tokenizer.codes} if config.model.target == "vq" else None
    fixed = {"weights": weights, "backbone": None, "do_cls": True, "predictor_layers": 2, "vq_model": vq}
    return {**fixed, **entry}
