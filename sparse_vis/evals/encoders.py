"""Encoders by name: the run's own model, others beside it, and baselines without a model."""

from __future__ import annotations

import math
import pathlib
import zlib

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from sparse_vis import api
from sparse_vis.errors import UserError
from sparse_vis.evals.baselines import mean_colour, patch_pca, raw_pixels
from sparse_vis.evals.dataset import Part
from sparse_vis.evals.features import Encoder
from sparse_vis.interop import hub, mae
from sparse_vis.models.encoder import Encoder as Vit
from sparse_vis.models.stellar import Stellar, init_params
from sparse_vis.train import checkpoint, settings
from sparse_vis.types import Features

OWN = "trained"  # row of the run's own model
BASELINES = ("untrained", "pixels", "mean_colour", "pca")


def checksum(params: dict) -> int:
    """CRC-32 of all parameters: tells weights apart, wherever they came from."""
    crc = 0
    for leaf in jax.tree.leaves(params):
        crc = zlib.crc32(np.ascontiguousarray(leaf), crc)
    return crc


def stellar_encoder(name: str, model: Stellar, params: dict, about: dict) -> Encoder:
    """A STELLAR model as an Encoder of the evaluation contract.

    Args:
        name: row of the tables. model, params: of `sparse_vis.load`. about: where the weights come from.
    """
    absent = {}
    if model.decoder.codes and model.tokenizer is None:
        absent["reconstruction"] = "its VQ tokenizer is not at hand; give --config.model.tokenizer.path=FILE"
    prototypes = params["sparse_head"]["prototypes"]

    @jax.jit
    def nearest(params, tokens):
        source = model.apply({"params": params}, tokens, method=lambda m, x: m.sparse_head(x))
        return jnp.argmax(source @ params["sparse_head"]["prototypes"], axis=-1)

    def features(images, wanted):
        out = api.encode(model, params, images)
        found = {"cls": out.cls, "sparse": out.sparse, "dense": out.dense, "spatial": out.spatial}
        if "prototype" in wanted:
            found["prototype"] = nearest(params, out.sparse)
        if "reconstruction" in wanted:
            found["reconstruction"] = api.reconstruct(model, params, out)
        return {key: found[key] for key in wanted}

    def decode(S, L):
        side = math.isqrt(L.shape[1]) * model.patch
        out = Features(cls=None, sparse=S, dense=None, spatial=L, lowrank=L @ S, size=(side, side))
        return api.reconstruct(model, params, out)

    gives = ("cls", "sparse", "dense", "spatial", "prototype", "reconstruction")
    return Encoder(
        name,
        tuple(key for key in gives if key not in absent),
        features,
        None if absent else decode,
        prototypes=prototypes.shape[1],
        about={**about, "crc32": checksum(params), "patch": model.patch, "tokens": model.encoder.queries},
        absent=absent,
    )


def own_encoder(config: ConfigDict, workdir: pathlib.Path) -> tuple[Encoder, tuple[Stellar, dict] | None]:
    """The newest checkpoint of a workdir, else the weights that config.init names.

    Returns:
        The encoder, named "trained", and its model and parameters; None for these of an MAE backbone.

    Raises:
        UserError: neither is there, or it cannot be loaded, or the checkpoint has another architecture.
    """
    place, name = str(workdir), None
    if checkpoint.newest_step(workdir):
        folder = checkpoint.find_step(workdir)
        saved = settings.from_plain(checkpoint.read_config(folder), folder)
        settings.check_resume(settings.plain(saved), settings.plain(config), workdir)
    elif config.init:
        place, name = config.init, config.init_name or None
        file = None if name else mae.find_file(place)
        backbone = mae.read_backbone(file, config) if file is not None else None
        if backbone is not None:
            return backbone_encoder(OWN, config, backbone, {"from": place}), None
    else:
        raise UserError(
            f"{workdir} holds no checkpoint and config.init names no weights; train first, correct "
            "--workdir, or give --config.init=PLACE."
        )
    about, tokenizer = origin(place, name), config.model.tokenizer.path or None
    model, params = api.load(about["from"], name, tokenizer=tokenizer, dtype=config.eval.dtype)
    return stellar_encoder(OWN, model, params, about), (model, params)


def origin(place: str, name: str | None = None) -> dict:
    """Where weights come from: of a workdir the newest step's folder, at this moment, and its number."""
    if checkpoint.newest_step(pathlib.Path(place)):
        folder = checkpoint.find_step(pathlib.Path(place))
        return {"from": str(folder), "step": int(folder.name)}
    return {"from": place, **({"name": name} if name else {})}


def backbone_encoder(name: str, config: ConfigDict, backbone: dict, about: dict) -> Encoder:
    """A plain ViT without queries, as the MAE initialisation is: CLS and U.

    Args:
        name: row of the tables. config: whose model's sizes the backbone has. backbone: of `read_backbone`.
        about: where it comes from.
    """
    m = config.model
    vit = Vit(
        m.image_size, m.patch, m.width, m.layers, m.heads, m.mlp_dim, queries=0, dtype=config.eval.dtype
    )
    params = jax.tree.map(jnp.asarray, {**backbone, "queries": np.zeros((0, m.width), np.float32)})

    @jax.jit
    def tokens(params, images):
        out = vit.apply({"params": params}, api.as_pixels(images, m.patch))
        return {"cls": out.cls, "dense": out.U}

    def features(images, wanted):
        out = tokens(params, images)
        return {key: out[key] for key in wanted}

    return Encoder(name, ("cls", "dense"), features, about={**about, "crc32": checksum(backbone)})


def beside_encoder(name: str, config: ConfigDict, own: tuple[Stellar, dict] | None, train: Part) -> Encoder:
    """An encoder of config.eval.beside.

    Args:
        name: of BASELINES, or a place that `sparse_vis.load` accepts. config: complete configuration.
        own: the run's own model and parameters, for "untrained". train: images that "pca" is fitted on.

    Raises:
        UserError: nothing loadable there, or its patches do not fit the images.
    """
    if name == "pixels":
        return raw_pixels()
    if name == "mean_colour":
        return mean_colour()
    if name == "pca":
        return patch_pca(train, config.model.patch, config.model.width)
    if name == "untrained":
        if own is None:
            raise UserError(
                "config.eval.beside='untrained' has no meaning beside an MAE backbone; leave it out."
            )
        model, trained = own
        frozen = {key: trained[key] for key in ("tokenizer",) if key in trained}
        params = init_params(model.clone(tokenizer=None), jax.random.key(config.seed)) | frozen
        return stellar_encoder(name, model, params, {"seed": config.seed})
    about = origin(name)
    model, params = api.load(about["from"], dtype=config.eval.dtype)
    _check_patch(name, model.patch, config)
    return stellar_encoder(name, model, params, about)


def check_beside(name: str, config: ConfigDict) -> None:
    """Refuse a name of config.eval.beside that cannot be meant, without reading weights.

    Raises:
        UserError: neither a baseline nor a place; a workdir without checkpoint, or with other patches.
    """
    path = pathlib.Path(name)
    if name in BASELINES or name.startswith(hub.PREFIX):
        return
    if not path.exists():
        raise UserError(
            f"config.eval.beside names {name!r}, which is neither a path nor one of {', '.join(BASELINES)}; "
            "correct it."
        )
    if (path / checkpoint.FOLDER).is_dir():
        folder = checkpoint.find_step(path)
        saved = settings.from_plain(checkpoint.read_config(folder), folder)
        _check_patch(name, saved.model.patch, config)


def _check_patch(name: str, patch: int, config: ConfigDict) -> None:
    if config.model.image_size % patch:
        raise UserError(
            f"config.eval.beside={name} has patches of {patch} px, which do not fill images of "
            f"config.model.image_size={config.model.image_size}; leave it out or change the image size."
        )
