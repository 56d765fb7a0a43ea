"""Encoders by name: the run's own model, models to compare with, and baselines without a model."""

from __future__ import annotations

import pathlib

import jax
from ml_collections import ConfigDict

from sparse_vis import api
from sparse_vis.config import settings
from sparse_vis.evals.baselines import mean_colour, patch_pca, raw_pixels
from sparse_vis.evals.dataset import Part
from sparse_vis.evals.features import Encoder
from sparse_vis.evals.model_encoders import backbone_encoder, stellar_encoder
from sparse_vis.interop import hub, mae, step_folder
from sparse_vis.interop.load import Loaded, is_shipped, read_model
from sparse_vis.models.stellar import Stellar, init_params
from sparse_vis.runtime.errors import UserError

OWN = "trained"  # name of the run's own model in tables
BASELINES = ("untrained", "pixels", "mean_colour", "pca")


def own_encoder(config: ConfigDict, workdir: pathlib.Path) -> tuple[Encoder, tuple[Stellar, dict] | None]:
    """The newest checkpoint of a workdir, else the weights that config.init names.

    Returns:
        The encoder, named "trained", and (model, parameters), or None for an MAE backbone.

    Raises:
        UserError: there is neither, it cannot be loaded, or the checkpoint has another architecture.
    """
    place, name = str(workdir), None
    trained = step_folder.newest_step(workdir) > 0
    if config.init and not trained:
        place, name = config.init, config.init_name or None
        file = None if name else mae.find_file(place)
        backbone = mae.read_backbone(file, config) if file is not None else None
        if backbone is not None:
            return backbone_encoder(OWN, config, backbone, {"from": place}), None
    elif not trained:
        raise UserError(
            f"{workdir} holds no checkpoint and config.init names no weights; train first, correct "
            "--workdir, or give --config.init=PLACE."
        )
    found = read_model(place, name)
    if trained:
        settings.check_resume(settings.plain(found.config), settings.plain(config), workdir)
    # Pixel models do not use a tokenizer; a probe that predicts codes reads its own.
    tokenizer = config.model.tokenizer.path if config.model.target == "vq" else None
    model, params = api.assemble(found, place, tokenizer=tokenizer or None, dtype=config.eval.dtype)
    return stellar_encoder(OWN, model, params, origin(found, place, name)), (model, params)


def origin(found: Loaded, place: str, name: str | None = None) -> dict:
    """Where weights were read from; for a workdir, step folder and step."""
    if found.step is not None:
        return {"from": str(found.step), "step": int(found.step.name)}
    return {"from": place, **({"name": name} if name else {})}


def beside_encoder(name: str, config: ConfigDict, own: tuple[Stellar, dict] | None, train: Part) -> Encoder:
    """An encoder of config.eval.beside.

    Args:
        name: one of BASELINES, or a path that `sparse_vis.load` accepts. config: complete configuration.
        own: the run's own model and parameters, for "untrained". train: images on which "pca" is fitted.

    Raises:
        UserError: nothing can be loaded, or its patches do not fit the images.
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
    found = read_model(name)
    model, params = api.assemble(found, name, dtype=config.eval.dtype)
    _check_patch(name, model.patch, config)
    return stellar_encoder(name, model, params, origin(found, name))


def check_beside(name: str, config: ConfigDict) -> None:
    """Refuse an invalid name in config.eval.beside; for workdirs, without reading the weights.

    Raises:
        UserError: neither a baseline nor a model; a workdir without checkpoint; patches that do not fit.
    """
    path = pathlib.Path(name)
    if name in BASELINES or name.startswith(hub.PREFIX) or is_shipped(name):
        return
    if not name or not path.exists():
        raise UserError(
            f"config.eval.beside names {name!r}, which is neither a path nor one of {', '.join(BASELINES)}, "
            "scenes-tiny; correct it."
        )
    if (path / step_folder.FOLDER).is_dir():
        saved = settings.from_plain(step_folder.read_newest(path, step_folder.read_config), path)
        _check_patch(name, saved.model.patch, config)
    else:
        _check_patch(name, read_model(name).config.model.patch, config)


def _check_patch(name: str, patch: int, config: ConfigDict) -> None:
    if config.model.image_size % patch:
        raise UserError(
            f"config.eval.beside={name} has patches of {patch} px, which do not fill images of "
            f"config.model.image_size={config.model.image_size}; leave it out or change the image size."
        )
