"""Write a model for other programs: `python -m sparse_vis export --checkpoint=WORKDIR --output=DIR`.

Format "released": a safetensors file with the published names and torch layouts, and its config.json. The
published PyTorch code can read it, and `sparse_vis.load(DIR)` restores the weights exactly.

Formats "stablehlo" (for jax.export) and "onnx" (for onnxruntime): the encoder as a program that runs without
this package. It takes uint8 images (batch, H, W, 3) of the model's own size, any number of them, and returns
the same arrays as `sparse_vis.encode`, under the same names. A JSON file beside the program describes this.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from safetensors import SafetensorError

from sparse_vis import api
from sparse_vis.build import build_model
from sparse_vis.commands import outputs
from sparse_vis.data.records import SHORT_SIDE
from sparse_vis.interop import manifest
from sparse_vis.interop.formats import write_safetensors
from sparse_vis.interop.load import Loaded, read_model
from sparse_vis.interop.maskgit import load_tokenizer
from sparse_vis.interop.released import Tensors, params_to_tensors, teacher_to_tensors, unused_tensors
from sparse_vis.models.stellar import Stellar
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.files import whole, write_json, write_whole
from sparse_vis.runtime.tools import Parser

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


def export_released(source: str, output: Path, name: str | None = None) -> Path:
    """Write a model in the released form; returns the path of the weights.

    Args:
        source: anything that `sparse_vis.load` accepts. output: folder, created if needed.
        name: which model, if a release holds several.

    Raises:
        UserError: the source cannot be read, or `output` holds a model or cannot be written.
    """
    if (output / "config.json").exists():
        raise UserError(f"{output} already holds a config.json; give a new --output folder.")
    found = read_model(source, name, teacher=True)
    called = found.config.name.replace("/", "-")
    weights = output / f"{called}.safetensors"
    entry, copy = manifest.from_config(found.config, weights.name), None
    if found.tokenizer is not None and found.tokenizer.is_file():
        copy = output / f"{called}.vqgan{found.tokenizer.suffix}"
        entry["vq_model"] = manifest.vq_entry(load_tokenizer(found.tokenizer)[0], copy.name)
    tensors = released_tensors(found)
    with outputs.in_one_sentence(output):
        output.mkdir(parents=True, exist_ok=True)
        with whole(weights) as partial:
            try:
                write_safetensors(tensors, partial)
            except SafetensorError as error:
                raise OSError(str(error)) from error
        if copy is not None:
            with whole(copy) as partial:
                shutil.copyfile(found.tokenizer, partial)
        # Last, so that an interrupted export is never taken for a complete one.
        write_json(output / "config.json", {"models": {called: entry}})
        shutil.copymode(output / "config.json", weights)  # safetensors makes files readable by the owner only
    return weights


def released_tensors(found: Loaded) -> Tensors:
    """All tensors of a released file: the model's, its teacher's if it has one, and unused ones."""
    patch, teacher = found.config.model.patch, found.teacher
    # The published module declares tensors that it does not use: those of the source, or else zeros.
    return {
        **unused_tensors(found.params, teacher=teacher is not None),
        **found.unused,
        **(teacher_to_tensors(teacher, patch) if teacher is not None else {}),
        **params_to_tensors(found.params, patch),
    }


def export_program(source: str, output: Path, kind: str, name: str | None = None) -> Path:
    """Write a model's encoder as a program, and a JSON file that describes it; returns the program's path.

    Args:
        source, output, name: as for `export_released`. kind: one of FORMATS.

    Raises:
        UserError: the source cannot be read or is too large, `output` holds such a program or cannot be
            written, or the package onnx is not installed.
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
            f"the encoder of {source} has {weight / 2**30:.1f} GiB, but --format={kind} files can hold at "
            "most 2 GiB; use --format=released."
        )
    image = jax.ShapeDtypeStruct((1, *2 * (model.encoder.image_size,), 3), np.uint8)
    shapes = jax.eval_shape(encoder_of(model, params), image)
    widths = {name: list(shapes[name].shape[1:]) for name in MEANING}
    program, about = FORMATS[kind](model, params, widths)
    described = json.dumps({"format": kind, **about, **describe(model, widths)}, indent=1)
    with outputs.in_one_sentence(output):
        output.mkdir(parents=True, exist_ok=True)
        write_whole(path, program)
        write_whole(beside, f"{described}\n")  # last, as above
    return path


def encoder_of(model: Stellar, params: dict) -> Callable[[jax.Array], dict[str, jax.Array]]:
    """A function: images (batch, H, W, 3) uint8 -> {name in MEANING: (batch, tokens, width) float32}."""

    def encode(images):
        features = api.encode(model, params, images)
        return {name: getattr(features, name) for name in MEANING}

    return encode


def to_stablehlo(model: Stellar, params: dict, _) -> tuple[bytes, dict]:
    """The serialized program of `jax.export`, for all PLATFORMS, and facts for the JSON file."""
    (batch,) = jax.export.symbolic_shape("batch")
    images = jax.ShapeDtypeStruct((batch, *2 * (model.encoder.image_size,), 3), np.uint8)
    exported = jax.export.export(jax.jit(encoder_of(model, params)), platforms=PLATFORMS)(images)
    convention = {"calling_convention_version": exported.calling_convention_version}
    about = {"platforms": list(exported.platforms), **convention, "jax": jax.__version__}
    return bytes(exported.serialize()), about


def to_onnx(model: Stellar, params: dict, widths: dict[str, list[int]]) -> tuple[bytes, dict]:
    """The serialized ONNX graph, and facts for the JSON file; `widths` is name -> [tokens, width]."""
    try:
        from sparse_vis.commands import onnx_graph
    except ModuleNotFoundError as error:
        if error.name != "onnx":
            raise
        raise UserError('--format=onnx needs the package onnx: pip install -e ".[onnx]"') from None
    graph = onnx_graph.build(model, params, widths)
    return graph.SerializeToString(), {"opset": onnx_graph.OPSET}


FORMATS = {"stablehlo": to_stablehlo, "onnx": to_onnx}


def describe(model: Stellar, widths: dict[str, list[int]]) -> dict:
    """The part of the JSON file that is the same in both formats."""
    size = model.encoder.image_size
    return {
        "input": {
            "name": "images", "dtype": "uint8", "shape": ["batch", size, size, 3],
            "layout": "NHWC, RGB, 0 to 255",
        },
        "preprocessing": f"turn upright, resize the short side to {round(SHORT_SIDE * size)} px (bicubic, "
        f"antialiased), cut out the centre of {size}x{size} px; scaling and normalisation happen inside",
        "outputs": {
            name: {"dtype": "float32", "shape": ["batch", *shape], "what": MEANING[name]}
            for name, shape in widths.items()
        },
        "patch": model.patch,
        "grid": list(model.grid(size, size)),
    }  # fmt: skip


def main() -> None:
    """Command line; see --help."""
    parser = Parser(description="Write a model for other programs (docs/compatibility.md).")
    parser.add_argument("--checkpoint")
    parser.add_argument("--name")
    what = (
        "released: weights that PyTorch and sparse_vis read; stablehlo, onnx: the encoder as a program "
        "(%(default)s)"
    )
    parser.add_argument("--format", choices=["released", *FORMATS], default="released", help=what)
    parser.add_argument("--output", help="folder for the exported model")
    given = parser.parse_args()
    with outputs.writing(given.output, "export"):
        if given.format == "released":
            path, beside = export_released(given.checkpoint, given.output, given.name), "config.json"
        else:
            path = export_program(given.checkpoint, given.output, given.format, given.name)
            beside = f"{path.name}.json"
    print(f"wrote {path} and its {beside}")
