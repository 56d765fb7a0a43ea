"""The notebook interface: load a model, encode images, reconstruct them."""

import copy
import functools
import pathlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sparse_vis.build import build_model
from sparse_vis.config.ranges import DTYPES
from sparse_vis.data import wrong_images
from sparse_vis.interop import probe_file
from sparse_vis.interop.load import Loaded, read_model
from sparse_vis.interop.maskgit import load_tokenizer
from sparse_vis.models.stellar import Stellar
from sparse_vis.runtime import calls, host, paths
from sparse_vis.runtime.batches import Devices, run_in_batches
from sparse_vis.runtime.errors import UserError
from sparse_vis.types import Features

Path = str | pathlib.Path


def load(
    path: Path, name: str | None = None, *, tokenizer: Path | None = None, tokenizer_dtype: str = "float32",
    dtype: str = "float32", probe: Path | None = None, segmenter: Path | None = None,
    revision: str | None = None, local_files_only: bool = False,
) -> tuple[Stellar, dict]:  # fmt: skip
    """Load a model and its parameters, on any device, whatever devices it was trained on.

    Also turns on JAX's persistent compilation cache, unless the user set one, so that later processes start
    faster.

    Args:
        path: workdir of main.py (its newest checkpoint) or one step folder; a released .safetensors
            file with its config.json beside it; a release folder; hf://microsoft/STELLAR/stellar-b16; or
            "pictures-tiny" or "scenes-tiny", small models that come with the package. Files and folders may
            be in gs://, and all but checkpoints also in s3:// (docs/pods.md).
        name: which model, if a release folder holds several.
        tokenizer: weights of the VQ tokenizer (torch, safetensors or Flax file); by default the file
            that the checkpoint or manifest names, if it exists. Only `reconstruct` of VQ models needs it.
        tokenizer_dtype, dtype: in which the tokenizer and the model compute; parameters are float32.
        probe: file of a classifier for `classify`, or its folder; by default that of the fine-tuning, or the
            probe.safetensors beside the model, if it is for these weights.
        segmenter: the same for `segment`, with segmenter.safetensors.
        revision, local_files_only: for hf:// addresses, as in huggingface_hub.

    Returns:
        (model, params) for `encode` and `reconstruct`, and for `classify` and `segment` if a classifier and a
        segmenter were found.

    Raises:
        UserError: what is missing, damaged or of the wrong shape.
    """
    for argument, value in (("dtype", dtype), ("tokenizer_dtype", tokenizer_dtype)):
        if value not in DTYPES:
            raise UserError(f"{argument}={value!r} is not supported; give one of {', '.join(DTYPES)}.")
    if tokenizer is not None:
        tokenizer = paths.expanded(tokenizer, "tokenizer", buckets=True)
    host.keep_programs()
    found = read_model(path, name, revision=revision, local_files_only=local_files_only)
    model, params = assemble(found, path, tokenizer=tokenizer, tokenizer_dtype=tokenizer_dtype, dtype=dtype)
    model, params = with_classifier(model, params, *probe_file.head_of(found, path, probe)[:2])
    if not (read := probe_file.head_of(found, path, segmenter, probe_file.SEGMENTER)):
        return model, params
    return model.clone(segmenter=read[0]), {**params, "segmenter": read[1]}


def with_classifier(model: Stellar, params: dict, classifier=None, tensors: dict | None = None):
    """(model, params) with a classifier and its parameters; unchanged without one."""
    if classifier is None:
        return model, params
    return model.clone(classifier=classifier), {**params, "classifier": tensors}


def assemble(
    found: Loaded, path: Path, *, tokenizer: Path | None = None, tokenizer_dtype: str = "float32",
    dtype: str = "float32",
) -> tuple[Stellar, dict]:  # fmt: skip
    """(model, params) of `load`, without classifier and segmenter, from what `read_model` found at `path`.

    Raises UserError if the tokenizer does not fit the model.
    """
    config = copy.deepcopy(found.config)
    config.efficiency.update(dtype=dtype, remat="none", attention="xla")
    # Not jnp.asarray, which compiles a program for every shape.
    model, params = build_model(config), jax.device_put(found.params)
    if tokenizer is not None and config.model.target != "vq":
        raise UserError(
            f"{path} reconstructs pixels and does not use a tokenizer; leave out tokenizer={tokenizer}."
        )
    weights = tokenizer or found.tokenizer
    if weights is None or (tokenizer is None and not weights.is_file()):
        return model, params
    vqgan, vqgan_params = load_tokenizer(weights, tokenizer_dtype)
    if vqgan.num_embeddings != config.model.tokenizer.codes:
        raise UserError(
            f"the tokenizer {weights} has {vqgan.num_embeddings} codes, but the model in {path} predicts "
            f"{config.model.tokenizer.codes}; give the tokenizer that the model was trained with."
        )
    return model.clone(tokenizer=vqgan), {**params, "tokenizer": vqgan_params}


def as_pixels(images: Array) -> Float[Array, "B H W 3"]:
    """Images, uint8 or float in [0, 1], as float32 in [0, 1]."""
    return images.astype(jnp.float32) / (255 if images.dtype == jnp.uint8 else 1)


def checked(images: Array, patch: int) -> Array:
    """The images as a JAX array; `patch` is the smallest allowed side in pixels.

    Raises UserError if they are not an array, are empty, of a wrong shape or dtype, smaller than a patch, or
    have values outside [0, 1] (not checked inside jit, where values are not known).
    """
    if what := wrong_images.shape_fault(images):
        raise UserError(what)
    if min(images.shape[1:3]) < patch:
        raise UserError(
            f"images of {images.shape[1]}x{images.shape[2]} px are smaller than a patch ({patch} px); "
            "enlarge them."
        )
    if not isinstance(images, jax.Array):
        try:
            images = np.asarray(images)
        except Exception as error:  # e.g. a torch tensor on a GPU, or with gradients
            what = f"images are a {type(images).__name__} that NumPy cannot read ({error})"
            raise UserError(f"{what}; give NumPy arrays.") from error
    if what := wrong_images.value_fault(images):
        raise UserError(what)
    return jax.device_put(images)


def check_model(call: str, model: Stellar, params: dict) -> None:
    """Raise UserError, quoting `call`, unless `model` and `params` are what `load` returns, in this order."""
    if not isinstance(model, Stellar) or not isinstance(params, Mapping):
        raise UserError(
            f"{call} got a {type(model).__name__} as model and a {type(params).__name__} as params; "
            f"write model, params = load(PATH), then {call}."
        )
    if "encoder" not in params:
        remedy = "give params['params']" if "params" in params else "give those of load(PATH)"
        raise UserError(f"{call} got params without an 'encoder' ({', '.join(params) or 'empty'}); {remedy}.")


def check_tokenizer(model: Stellar, checkpoint: str) -> None:
    """Raise a tool's UserError if the model needs a VQ tokenizer to reconstruct and has none."""
    if model.decoder.codes and model.tokenizer is None:
        raise UserError(
            f"{checkpoint} reconstructs through a VQ tokenizer, whose weights were not found; give "
            "--tokenizer=FILE."
        )


@functools.partial(jax.jit, static_argnums=0)
def _encode(model: Stellar, params: dict, images: Array) -> Features:
    tokens = model.apply({"params": params}, as_pixels(images), method="encode")
    factors = model.apply({"params": params}, tokens, method="factorize")
    return Features(
        cls=tokens.cls, sparse=tokens.S, dense=tokens.U, spatial=factors.L, lowrank=factors.Z,
        size=images.shape[1:3],
    )  # fmt: skip


def encode(model: Stellar, params: dict, images: Array) -> Features:
    """Encode images into sparse tokens S, localization L, dense features U and Z = L S.

    Args:
        model, params: as `load` returns them.
        images: (B, H, W, 3) uint8, or float in [0, 1]; H and W at least one patch.

    Returns:
        Features: cls (B, 1, d), sparse (B, r, d), dense (B, n, d), spatial (B, n, r) and
        lowrank (B, n, d). Works inside jit.

    Raises:
        UserError: images of a wrong shape, dtype or (outside jit) range; arguments in the wrong order.
    """
    check_model("encode(model, params, images)", model, params)
    return _encode(model, params, checked(images, model.patch))


@functools.partial(jax.jit, static_argnums=0)
def _classify(model: Stellar, params: dict, images: Array) -> Array:
    return jax.nn.softmax(model.apply({"params": params}, as_pixels(images), method="classify"))


def of_images(call: Callable, model: Stellar, params: dict, images, batch: int) -> np.ndarray:
    """`call(model, params, array)` for all images: at once if they are an array; otherwise `as_source` opens
    them, and they are cropped to squares, `batch` at a time."""
    if hasattr(images, "dtype") and images.ndim != 1:  # np.array(paths) has one axis
        return np.asarray(call(model, params, checked(images, model.patch)))
    from sparse_vis.data.records import image_batches  # here, as encode and reconstruct need none of it
    from sparse_vis.data.sources import as_source

    source, batch = as_source(images), calls.whole("batch", batch, 1)
    parts = image_batches(source, range(len(source)), model.encoder.image_size, batch)
    stacked = (np.stack([image.pixels for image in part]) for part in parts)
    placed = functools.partial(call, model, Devices().everywhere(params))
    return np.concatenate([run_in_batches(placed, batch, pixels) for pixels in stacked])


@calls.renamed(calls.OF_CALLS)
def classify(model: Stellar, params: dict, images, *, batch: int = 64) -> tuple[list[str], np.ndarray]:
    """Classes of images, by the classifier that `load` found beside the model or `probe` has fitted.

    Inside jit, use model.apply({"params": params}, images / 255, method="classify"), which returns logits.

    Args:
        model, params: as `load` or `probe` returns them.
        images: an array as for `encode`, which is not resized; or, as for `probe`, a folder, an address, or a
            list of paths or arrays, whose images are resized (short side 256/224 of the model's image size)
            and cropped to their centre square, `batch` at a time. So the same images may give other
            probabilities as an array than as a list.

    Returns:
        (names, probabilities): the most likely class of each image, and (B, classes) float32. Images are in
        the order given, those of a folder sorted by path; classes in the order of model.classifier.classes.

    Raises:
        UserError: the model has no classifier, or the images cannot be used.
    """
    check_model("classify(model, params, images)", model, params)
    if model.classifier is None:
        raise UserError(
            "this model has no classifier; fit one: model, params, report = sparse_vis.probe(model, params, "
            "labelled images)."
        )
    probabilities = of_images(_classify, model, params, images, batch)
    return [model.classifier.classes[i] for i in probabilities.argmax(axis=1)], probabilities


@functools.partial(jax.jit, static_argnums=(0, 3))
def _reconstruct(model: Stellar, params: dict, Z: Array, grid: tuple[int, int]) -> Array:
    decoded = model.apply({"params": params}, Z, grid, method="decode")
    if model.decoder.codes:
        return model.apply({"params": params}, decoded, grid, method="decode_codes")
    return jnp.clip(decoded, 0, 1)


def reconstruct(model: Stellar, params: dict, features: Features) -> Float[Array, "B H W 3"]:
    """Reconstruct pixels from Z = L S alone.

    Args:
        model, params: as `load` returns them. features: from `encode`; only lowrank (B, n, d) is read.

    Returns:
        (B, H, W, 3) float32 clipped to [0, 1]; H and W are multiples of the patch size. With the VQ target
        each patch becomes one code of the tokenizer, 16 px wide: 256x256 px for 224x224 at patch 14.

    Raises:
        UserError: a VQ model without its tokenizer, features of another model, arguments in the wrong order.
    """
    check_model("reconstruct(model, params, features)", model, params)
    if model.decoder.codes and model.tokenizer is None:
        raise UserError(
            "this model reconstructs through a VQ tokenizer, whose weights were not found; give them as "
            "sparse_vis.load(path, tokenizer=FILE)."
        )
    if not isinstance(features, Features):
        kind = type(features).__name__
        raise UserError(f"features are a {kind}; give what encode(model, params, images) returns.")
    grid = model.grid(*features.size)
    shape, wanted = features.lowrank.shape, (grid[0] * grid[1], model.encoder.sizes.width)
    if len(shape) != 3 or shape[1:] != wanted:
        raise UserError(
            f"features.lowrank has shape {shape}, but for {features.size[0]}x{features.size[1]} px this "
            f"model expects (B, {wanted[0]}, {wanted[1]}); give what encode returns with the same model."
        )
    return _reconstruct(model, params, features.lowrank, grid)
