"""The encoder as a program for other runtimes: StableHLO for jax.export, ONNX for onnxruntime.

Both take uint8 images (batch, H, W, 3) of the model's own size and any batch size, and return the same arrays
as `sparse_vis.encode`, under the same names. A JSON file beside the program describes this.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable

import jax
import numpy as np

from sparse_vis import api
from sparse_vis.build import build_model
from sparse_vis.interop.load import read_model
from sparse_vis.models.stellar import Stellar
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.files import write_whole

PLATFORMS = ("cpu", "cuda", "tpu")
PARTS = ("encoder", "factorizer")  # exported parameters; decoder and heads are not exported
MAX_BYTES = 2**31 - 2**20  # of weights: the program files, flatbuffers and protobuf, are limited to 2 GiB
MEANING = {
    "cls": "class token",
    "sparse": "semantic tokens S: what",
    "spatial": "localization matrix L: where; every row sums to 1, patches are row-major",
    "dense": "patch features U, row-major",
    "lowrank": "Z = L S",
}


def encoder_of(model: Stellar, params: dict) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """A function: images (batch, H, W, 3) uint8 -> {name in MEANING: (batch, tokens, width) float32}."""

    def encode(images):
        features = api.encode(model, params, images)
        return {name: getattr(features, name) for name in MEANING}

    return encode


def to_stablehlo(model: Stellar, params: dict, _outputs: dict[str, list[int]]) -> tuple[bytes, dict]:
    """The serialized program of `jax.export`, for all PLATFORMS, and facts for the JSON file."""
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *2 * (model.encoder.image_size,), 3), np.uint8)
    exported = jax.export.export(jax.jit(encoder_of(model, params)), platforms=PLATFORMS)(images)
    about = {
        "platforms": list(exported.platforms),
        "calling_convention_version": exported.calling_convention_version,
        "jax": jax.__version__,
    }
    return bytes(exported.serialize()), about


def to_onnx(model: Stellar, params: dict, outputs: dict[str, list[int]]) -> tuple[bytes, dict]:
    """The serialized ONNX graph, and facts for the JSON file.

    Raises:
        UserError: the package onnx is not installed.
    """
    try:
        from sparse_vis.commands import onnx_graph
    except ModuleNotFoundError as error:
        if error.name != "onnx":
            raise
        raise UserError('--format=onnx needs the package onnx: pip install -e ".[onnx]"') from None
    graph = onnx_graph.build(model, params, outputs)
    return graph.SerializeToString(), {"opset": onnx_graph.OPSET}


FORMATS = {"stablehlo": to_stablehlo, "onnx": to_onnx}


def describe(model: Stellar, outputs: dict[str, list[int]]) -> dict:
    """The part of the JSON file that is the same in both formats.

    Args:
        model: of the program. outputs: name -> [tokens, width].
    """
    size = model.encoder.image_size
    return {
        "input": {
            "name": "images", "dtype": "uint8", "shape": ["batch", size, size, 3],
            "layout": "NHWC, RGB, 0 to 255",
        },
        "preprocessing": f"turn upright, resize the short side to {round(256 / 224 * size)} px (bicubic, "
        f"antialiased), cut out the centre of {size}x{size} px; scaling and normalisation happen inside",
        "outputs": {
            name: {"dtype": "float32", "shape": ["batch", *shape], "what": MEANING[name]}
            for name, shape in outputs.items()
        },
        "patch": model.patch,
        "grid": list(model.grid(size, size)),
    }  # fmt: skip


def export_program(source: str, output: pathlib.Path, kind: str, name: str | None = None) -> pathlib.Path:
    """Write a model's encoder as a program, and a JSON file that describes it.

    Args:
        source: anything that `sparse_vis.load` accepts. output: folder, created if needed.
        kind: one of FORMATS. name: which model, if a release holds several.

    Returns:
        The path of the program.

    Raises:
        UserError: the source cannot be read or is too large, or `output` holds such a program or cannot be
            written.
    """
    found = read_model(source, name)
    path = output / f"{found.config.name.replace('/', '-')}.{kind}"
    beside = path.with_name(f"{path.name}.json")
    if beside.exists():
        raise UserError(f"{output} already holds {beside.name}; give a new --output folder.")
    found.config.efficiency.update(dtype="float32", remat="none", attention="xla")
    model = build_model(found.config)
    params = jax.tree.map(np.asarray, {part: found.params[part] for part in PARTS})
    weight = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    if weight > MAX_BYTES:
        raise UserError(
            f"{source} has an encoder of {weight / 2**30:.1f} GiB, and files of --format={kind} end at "
            "2 GiB; use --format=released."
        )
    image = jax.ShapeDtypeStruct((1, *2 * (model.encoder.image_size,), 3), np.uint8)
    shapes = jax.eval_shape(encoder_of(model, params), image)
    outputs = {name: list(shapes[name].shape[1:]) for name in MEANING}
    program, about = FORMATS[kind](model, params, outputs)
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_whole(path, program)
        # Last, so that an interrupted export is never taken for a complete one.
        write_whole(
            beside, json.dumps({"format": kind, **about, **describe(model, outputs)}, indent=1) + "\n"
        )
    except OSError as error:
        raise UserError(
            f"{output} cannot be written ({error}); give another --output folder, or make room and repeat "
            "the command."
        ) from error
    return path
