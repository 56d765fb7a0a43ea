"""The notebook interface: load a model, encode images, reconstruct them."""

from __future__ import annotations

import copy
import functools
import pathlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sparse_vis.build import build_model
from sparse_vis.errors import UserError
from sparse_vis.interop.load import Loaded, read_model
from sparse_vis.interop.maskgit import load_tokenizer
from sparse_vis.models.stellar import Stellar
from sparse_vis.ranges import DTYPES
from sparse_vis.runtime import paths
from sparse_vis.types import Features


def load(
    path: str | pathlib.Path,
    name: str | None = None,
    *,
    tokenizer: str | pathlib.Path | None = None,
    tokenizer_dtype: str = "float32",
    dtype: str = "float32",
    revision: str | None = None,
    local_files_only: bool = False,
) -> tuple[Stellar, dict]:
    """Load a model; restores the parameters only, on any device, whatever trained them.

    Args:
        path: workdir of main.py (its newest checkpoint) or one step folder; a released .safetensors
            file with its config.json beside it; a release folder; hf://microsoft/STELLAR/stellar-b16; or
            "scenes-tiny", a small model that comes with the package.
        name: of the model, where a release folder holds several.
        tokenizer: weights of the VQ tokenizer (torch, safetensors or Flax file); by default the file
            that the checkpoint or manifest names, if it is there. Only `reconstruct` of VQ models needs it.
        tokenizer_dtype, dtype: of the computation; parameters are float32.
        revision, local_files_only: for hf:// addresses.

    Returns:
        (model, params) for `encode` and `reconstruct`.

    Raises:
        UserError: nothing loadable there; names what is missing, damaged or of another shape.
    """
    for argument, value in (("dtype", dtype), ("tokenizer_dtype", tokenizer_dtype)):
        if value not in DTYPES:
            raise UserError(f"{argument}={value!r} cannot be computed in; give one of {', '.join(DTYPES)}.")
    tokenizer = tokenizer if tokenizer is None else paths.local(tokenizer, "tokenizer")
    found = read_model(path, name, revision=revision, local_files_only=local_files_only)
    return assemble(found, path, tokenizer=tokenizer, tokenizer_dtype=tokenizer_dtype, dtype=dtype)


def assemble(
    found: Loaded,
    path: str | pathlib.Path,
    *,
    tokenizer: str | pathlib.Path | None = None,
    tokenizer_dtype: str = "float32",
    dtype: str = "float32",
) -> tuple[Stellar, dict]:
    """Model and parameters, as `load`, of what was read from a path."""
    config = copy.deepcopy(found.config)
    config.efficiency.update(dtype=dtype, remat="none", attention="xla")
    model, params = build_model(config), jax.tree.map(jnp.asarray, found.params)
    if tokenizer is not None and config.model.target != "vq":
        raise UserError(f"{path} reconstructs pixels and has no use for tokenizer={tokenizer}; leave it out.")
    named = found.tokenizer if found.tokenizer is not None and found.tokenizer.is_file() else None
    if (weights := tokenizer or named) is None:
        return model, params
    vqgan, vqgan_params = load_tokenizer(weights, tokenizer_dtype)
    if vqgan.num_embeddings != config.model.tokenizer.codes:
        raise UserError(
            f"the tokenizer {weights} has {vqgan.num_embeddings} codes, the model of {path} predicts "
            f"{config.model.tokenizer.codes}; give the tokenizer that the model was trained with."
        )
    return model.clone(tokenizer=vqgan), {**params, "tokenizer": vqgan_params}


def as_pixels(images: Array, patch: int) -> Float[Array, "B H W 3"]:
    """Images as float32 in [0, 1].

    Args:
        images: (B, H, W, 3) uint8, or float in [0, 1]. patch: smallest side.

    Raises:
        UserError: no array, no images, another shape or dtype, or a side below the patch size.
    """
    shape = getattr(images, "shape", None)
    if shape is None:
        raise UserError(
            f"images are a {type(images).__name__}; give an array (B, H, W, 3), e.g. np.stack(images)."
        )
    if len(shape) != 4 or shape[-1] != 3:
        remedy = "images[None] for a single one"
        if len(shape) == 4 and shape[1] == 3:
            remedy = "images.transpose(0, 2, 3, 1)"
        raise UserError(f"images have shape {shape}; give (B, H, W, 3) RGB, e.g. {remedy}.")
    if shape[0] == 0:
        raise UserError(f"images have shape {shape}; give at least one.")
    if min(shape[1:3]) < patch:
        raise UserError(
            f"images of {shape[1]}x{shape[2]} px are smaller than a patch ({patch} px); enlarge them."
        )
    images = jnp.asarray(images)
    if images.dtype == jnp.uint8:
        return images.astype(jnp.float32) / 255
    if jnp.issubdtype(images.dtype, jnp.floating):
        return images.astype(jnp.float32)
    raise UserError(f"images have dtype {images.dtype}; give uint8, or float in [0, 1].")


@functools.partial(jax.jit, static_argnums=0)
def _encode(model: Stellar, params: dict, pixels: Array) -> Features:
    variables = {"params": params}
    tokens = model.apply(variables, pixels, method="encode")
    factors = model.apply(variables, tokens, method="factorize")
    return Features(
        cls=tokens.cls, sparse=tokens.S, dense=tokens.U, spatial=factors.L, lowrank=factors.Z,
        size=pixels.shape[1:3],
    )  # fmt: skip


def encode(model: Stellar, params: dict, images: Array) -> Features:
    """Encode images into sparse tokens S, localization L, dense features U and Z = L S.

    Args:
        model, params: of `load`.
        images: (B, H, W, 3) uint8, or float in [0, 1]; any H, W of at least a patch.

    Returns:
        Features: cls (B, 1, d), sparse (B, r, d), dense (B, n, d), spatial (B, n, r) and
        lowrank (B, n, d). Works inside jit.

    Raises:
        UserError: wrong shape or dtype.
    """
    return _encode(model, params, as_pixels(images, model.patch))


@functools.partial(jax.jit, static_argnums=(0, 3))
def _reconstruct(model: Stellar, params: dict, Z: Array, grid: tuple[int, int]) -> Array:
    variables = {"params": params}
    decoded = model.apply(variables, Z, grid, method="decode")
    if model.decoder.codes:
        return model.apply(variables, decoded, grid, method="decode_codes")
    return jnp.clip(decoded, 0, 1)


def reconstruct(model: Stellar, params: dict, features: Features) -> Float[Array, "B H W 3"]:
    """Pixels from Z = L S alone.

    Args:
        model, params: of `load`. features: of `encode`; only lowrank (B, n, d) is read.

    Returns:
        (B, H, W, 3) float32 clipped to [0, 1]; H and W are whole patches. With the VQ target every
        patch becomes one code of the tokenizer, 16 px wide: 256x256 at 224 px and patch 14.

    Raises:
        UserError: a VQ model without its tokenizer, or no features.
    """
    if model.decoder.codes and model.tokenizer is None:
        raise UserError(
            "this model reconstructs through a VQ tokenizer, whose weights are not at hand; "
            "give them as sparse_vis.load(path, tokenizer=FILE)."
        )
    if not isinstance(features, Features):
        raise UserError(
            f"features are a {type(features).__name__}; give what encode(model, params, images) returns."
        )
    return _reconstruct(model, params, features.lowrank, model.grid(*features.size))
