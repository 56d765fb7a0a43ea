"""Encoders by name: the run's own model, models to compare with, and baselines without a model."""

from __future__ import annotations

import functools
import math
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from ml_collections import ConfigDict

from sparse_vis import api
from sparse_vis.config import settings
from sparse_vis.evals.dataset import Part
from sparse_vis.evals.features import RANKS, Encoder, as_unit, patches_of
from sparse_vis.interop import backbones, hub, step_folder
from sparse_vis.interop.load import Loaded, is_shipped, read_model
from sparse_vis.models.block import Compute, Sizes
from sparse_vis.models.encoder import VisionTransformer
from sparse_vis.models.stellar import Stellar, init_params
from sparse_vis.ops.moments import Moments
from sparse_vis.runtime.batches import Devices
from sparse_vis.runtime.checksums import crc32
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.paths import AnyPath, as_path
from sparse_vis.types import Features

OWN = "trained"  # name of the run's own model in tables
BASELINES = ("untrained", "pixels", "mean_colour", "pca")
PCA_IMAGES = 1000  # most images on which principal components are fitted


def own_encoder(config: ConfigDict, workdir: AnyPath) -> tuple[Encoder, tuple[Stellar, dict] | None]:
    """The encoder in the newest checkpoint of a workdir; without one, in the weights that config.init names.

    Returns:
        The encoder, named "trained", and (model, parameters), or None for a backbone.

    Raises:
        UserError: there is neither, it cannot be loaded, or the checkpoint has another architecture.
    """
    place, name = str(workdir), None
    trained = step_folder.newest_step(workdir) > 0
    if config.init and not trained:
        place, name = config.init, config.init_name or None
        file = None if name else backbones.find_file(place)
        backbone = backbones.read_backbone(file, config) if file is not None else None
        if backbone is not None:
            return backbone_encoder(OWN, config, backbone, {"from": place}), None
    elif not trained:
        what = f"{workdir} holds no checkpoint and config.init names no weights"
        raise UserError(f"{what}; train first, correct --workdir, or give --config.init=PLACE.")
    found = read_model(place, name)
    if trained:
        if found.classifier:  # fine-tuning has set these
            config.finetune.classes = found.config.finetune.classes
            config.teacher.enabled = found.config.teacher.enabled
        settings.check_resume(settings.plain(found.config), settings.plain(config), workdir)
    else:  # "untrained" starts as config says, not as these weights once did
        found.config.model.init_std = config.model.init_std
    # Pixel models do not use a tokenizer; a probe that predicts codes reads its own.
    tokenizer = config.model.tokenizer.path if config.model.target == "vq" else None
    model, params = api.assemble(found, place, tokenizer=tokenizer or None, dtype=config.eval.dtype)
    encoder = stellar_encoder(
        OWN, *api.with_classifier(model, params, *found.classifier), _origin(found, place, name)
    )
    return encoder, (model, params)


def beside_encoder(name: str, config: ConfigDict, own: tuple[Stellar, dict] | None, train: Part) -> Encoder:
    """An encoder of config.eval.beside: one of BASELINES, or a path that `sparse_vis.load` accepts.

    Args:
        own: the run's own model and parameters, for "untrained". train: images to which "pca" is fitted.

    Raises:
        UserError: the path cannot be loaded, or the model's patches do not fit the images.
    """
    if name == "pixels":
        return raw_pixels()
    if name == "mean_colour":
        return mean_colour()
    if name == "pca":
        return patch_pca(train, config.model.patch, config.model.width)
    if name == "untrained":
        if own is None:
            raise UserError("config.eval.beside='untrained' cannot be used with a backbone; leave it out.")
        model, trained = own
        frozen = {key: trained[key] for key in ("tokenizer",) if key in trained}
        params = init_params(model.clone(tokenizer=None), jax.random.key(config.seed)) | frozen
        return stellar_encoder(name, model, params, {"seed": config.seed})
    found = read_model(name)
    model, params = api.assemble(found, name, dtype=config.eval.dtype)
    _check_patch(name, model.patch, config)
    return stellar_encoder(name, model, params, _origin(found, name))


def check_beside(name: str, config: ConfigDict) -> None:
    """Raise UserError for an invalid name in config.eval.beside; weights in workdirs are not read."""
    if name in BASELINES or name.startswith(hub.PREFIX) or is_shipped(name):
        return
    path = as_path(name)
    if not name or not path.exists():
        raise UserError(
            f"config.eval.beside names {name!r}, which is neither a path nor one of {', '.join(BASELINES)}, "
            "pictures-tiny, scenes-tiny; correct it."
        )
    if (path / step_folder.FOLDER).is_dir():
        saved = settings.from_plain(step_folder.read_newest(path, step_folder.read_config), path)
    else:
        saved = read_model(name).config
    _check_patch(name, saved.model.patch, config)


def _origin(found: Loaded, place: str, name: str | None = None) -> dict:
    """Where weights were read from; for our own checkpoints, step folder and step."""
    if found.step is not None:
        return {"from": str(found.step), "step": int(found.step.name)}
    return {"from": place, **({"name": name} if name else {})}


def _check_patch(name: str, patch: int, config: ConfigDict) -> None:
    if config.model.image_size % patch:
        raise UserError(
            f"config.eval.beside={name} has patches of {patch} px, which do not fill images of "
            f"config.model.image_size={config.model.image_size}; leave it out or change the image size."
        )


def checksums(model: nn.Module, params: dict) -> dict[str, int]:
    """CRC-32 of all parameters, and of the module's fields (such as its temperature)."""
    return {"crc32": crc32(params), "model_crc32": zlib.crc32(repr(model).encode())}


def stellar_encoder(name: str, model: Stellar, params: dict, about: dict) -> Encoder:
    """The encoder of a STELLAR model; `about` says where its weights are from."""
    absent, about = {}, {**about, **checksums(model, params)}
    params = Devices().everywhere(params)
    if model.decoder.codes and model.tokenizer is None:
        why = "the weights of its VQ tokenizer were not found; give --config.model.tokenizer.path=FILE"
        absent["reconstruction"] = why

    @jax.jit
    def nearest(params, tokens):
        embedding = model.apply({"params": params}, tokens, method=lambda m, x: m.sparse_head(x))
        return jnp.argmax(embedding @ params["sparse_head"]["prototypes"], axis=-1)

    def features(images, wanted):
        out = api.encode(model, params, images)
        found = {key: getattr(out, key) for key in wanted if hasattr(out, key)}
        if "prototype" in wanted:
            found["prototype"] = nearest(params, out.sparse)
        if "probability" in wanted:
            found["probability"] = api.classify(model, params, images)[1]
        if "reconstruction" in wanted:
            found["reconstruction"] = api.reconstruct(model, params, out)
        return found

    def decode(S, L):
        side = math.isqrt(L.shape[1]) * model.patch
        out = Features(cls=None, sparse=S, dense=None, spatial=L, lowrank=L @ S, size=(side, side))
        return api.reconstruct(model, params, out)

    classifier, prototypes = model.classifier, params["sparse_head"]["prototypes"].shape[1]
    lacks = {*absent, *(() if classifier else ("probability",))}
    gives = tuple(key for key in RANKS if key not in lacks)
    about |= {"patch": model.patch, "tokens": model.encoder.queries}
    about |= {"classes": list(classifier.classes)} if classifier else {}
    return Encoder(name, gives, features, None if absent else decode, prototypes, about, absent)


def backbone_encoder(name: str, config: ConfigDict, backbone: dict, about: dict) -> Encoder:
    """The encoder of another project's ViT, read by `read_backbone`: CLS and U. Its registers are queries."""
    m, compute = config.model, Compute(config.eval.dtype)
    sizes = Sizes(m.width, m.layers, m.heads, m.mlp_dim, epsilon=m.norm_epsilon)
    backbone = {"queries": np.zeros((0, m.width), np.float32), **backbone}
    vit = VisionTransformer(m.image_size, m.patch, sizes, len(backbone["queries"]), compute)
    params = Devices().everywhere(backbone)

    @jax.jit
    def tokens(params, images):
        out = vit.apply({"params": params}, api.as_pixels(api.checked(images, m.patch)))
        return {"cls": out.cls, "dense": out.U}

    about = {**about, **checksums(vit, backbone)}
    return Encoder(name, ("cls", "dense"), lambda images, _: tokens(params, images), about=about)


def raw_pixels() -> Encoder:
    """The baseline "pixels": the whole image is one dense token, so that its pooled feature is the image."""

    def features(images, wanted):
        return {"dense": as_unit(images).reshape(len(images), 1, -1)}

    return Encoder("pixels", ("dense",), features, about={"baseline": "pixels"})


def mean_colour() -> Encoder:
    """The baseline "mean_colour": the best reconstruction of an image by a single colour."""

    def features(images, wanted):
        x = as_unit(images)
        return {"reconstruction": np.broadcast_to(x.mean(axis=(1, 2), keepdims=True), x.shape)}

    return Encoder("mean_colour", ("reconstruction",), features, about={"baseline": "mean_colour"})


def patch_pca(train: Part, patch: int, width: int) -> Encoder:
    """The baseline "pca": each patch's pixels in the first `width` principal components of training patches.

    They are fitted at first use, to at most PCA_IMAGES images.
    """
    width, chosen = min(width, 3 * patch * patch), train.at_most(PCA_IMAGES)

    @functools.cache
    def components() -> tuple[np.ndarray, np.ndarray]:
        found = Moments.empty(3 * patch * patch)
        for records in chosen.batches(100):
            found = found.update(patches_of(records.image, patch))
        return found.mean.astype(np.float32), found.components(width).astype(np.float32)

    def features(images, wanted):
        mean, basis = components()
        return {"dense": (patches_of(images, patch) - mean) @ basis}

    about = {"baseline": "pca", "patch": patch, "components": width, "images": len(chosen)}
    return Encoder("pca", ("dense",), features, about=about)
