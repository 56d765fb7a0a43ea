"""Write a model for other programs: `python -m sparse_vis export --checkpoint=WORKDIR --output=DIR`.

Format "released": a safetensors file with the published names and torch layouts, and its config.json. The
published PyTorch code can read it, and `sparse_vis.load(DIR)` restores the weights exactly.

Formats "stablehlo" (for jax.export) and "onnx" (for onnxruntime): encoder and decoder as programs that run
without this package. The encoder takes uint8 images (batch, H, W, 3) of the model's own size, any number of
them, and returns the same arrays as `sparse_vis.encode`, under the same names, and with a probe the classes'
probabilities. The decoder takes S and L, and returns pixels. JSON files beside the programs describe this.
"""

import json
import math
import shutil
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from sparse_vis import api
from sparse_vis.build import build_model
from sparse_vis.commands import outputs
from sparse_vis.data.records import SHORT_SIDE
from sparse_vis.interop import manifest, probe_file
from sparse_vis.interop.formats import write_safetensors
from sparse_vis.interop.load import Loaded, read_model
from sparse_vis.interop.maskgit import load_tokenizer
from sparse_vis.interop.released import Tensors, params_to_tensors, teacher_to_tensors, unused_tensors
from sparse_vis.models.stellar import Stellar
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.files import on_disk, whole, write_json, write_whole
from sparse_vis.runtime.paths import AnyPath, in_bucket
from sparse_vis.runtime.tools import Parser
from sparse_vis.types import Tokens

Inputs = dict[str, tuple[tuple[int, ...], type]]  # name -> shape without the batch, element type
PLATFORMS = ("cpu", "cuda", "tpu")
PARTS = ("encoder", "factorizer", "classifier")  # parameters of the first program; "decoder" has the second
MAX_BYTES = 2**31 - 2**20  # of weights: the program files, flatbuffers and protobuf, are limited to 2 GiB
FEATURES = ("cls", "sparse", "spatial", "dense", "lowrank")
MEANING = {
    "cls": "class token",
    "sparse": "semantic tokens S: what",
    "spatial": "localization matrix L: where; every row sums to 1, patches are row-major",
    "dense": "patch features U, row-major",
    "lowrank": "Z = L S",
    "probability": "probability of each class, in the order of `classes`",
    "pixels": "pixels in [0, 1], NHWC, RGB",
    "logits": "logits of each patch's code of the VQ tokenizer",
}


def export_released(
    source: str, output: AnyPath, name: str | None = None, probe: str | None = None
) -> AnyPath:
    """Write a model in the released form into a folder; returns the path of the weights.

    `source`, `name` and `probe` are as for `load`. Raises UserError if the source cannot be read, or if
    `output` holds a model or cannot be written.
    """
    if (output / "config.json").exists():
        raise UserError(f"{output} already holds a config.json; give a new --output folder.")
    found = read_model(source, name, teacher=True)
    beside = {
        probe_file.FILE: probe_file.head_of(found, source, probe),
        probe_file.SEGMENTER: probe_file.head_of(found, source, None, probe_file.SEGMENTER),
    }
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
            write_safetensors(tensors, partial)
        if copy is not None:
            with whole(copy) as partial, on_disk(found.tokenizer) as file:
                shutil.copyfile(file, partial)
        for file, fitted in beside.items():
            if fitted:
                probe_file.write_probe(output / file, *fitted)
        # Last, so that an interrupted export is never taken for a complete one.
        write_json(output / "config.json", {"models": {called: entry}})
        if not in_bucket(output):  # safetensors makes files readable by the owner only
            shutil.copymode(output / "config.json", weights)
    return weights


def released_tensors(found: Loaded) -> Tensors:
    """All tensors of a released file: the model's, its teacher's if it has one, and unused ones."""
    patch, teacher = found.config.model.patch, found.teacher
    # The published module declares tensors that it does not use: write those of the source, or else zeros.
    return {
        **unused_tensors(found.params, teacher=teacher is not None),
        **found.unused,
        **(teacher_to_tensors(teacher, patch) if teacher is not None else {}),
        **params_to_tensors(found.params, patch),
    }


def export_program(
    source: str, output: AnyPath, kind: str, name: str | None = None, probe: str | None = None
) -> AnyPath:
    """Write a model's encoder and decoder as programs of a `kind` in FORMATS, with JSON files beside them.

    Returns the encoder's path; the decoder's has `.decoder` before the extension. Arguments are those of
    `export_released`. Raises the same UserErrors, and others if the model is too large or onnx not installed.
    """
    found = read_model(source, name)
    path = output / f"{found.config.name.replace('/', '-')}.{kind}"
    beside = path.with_name(f"{path.name}.json")
    if beside.exists():
        raise UserError(f"{output} already holds {beside.name}; give a new --output folder.")
    found.config.efficiency.update(dtype="float32", remat="none", attention="xla")
    classifier = probe_file.head_of(found, source, probe)[:2]
    model, params = api.with_classifier(build_model(found.config), found.params, *classifier)
    written = []  # decoder first, encoder last, as an encoder's JSON file says that all is there
    for part, make in (("decoder", decoder_of), ("encoder", encoder_of)):
        held = ("decoder",) if part == "decoder" else PARTS
        tensors = jax.tree.map(np.asarray, {name: params[name] for name in held if name in params})
        weight = sum(leaf.nbytes for leaf in jax.tree.leaves(tensors))
        if weight > MAX_BYTES:
            raise UserError(
                f"the {part} of {source} has {weight / 2**30:.1f} GiB, but --format={kind} files can hold at "
                "most 2 GiB; use --format=released."
            )
        function, inputs = make(model, tensors)
        one = jax.eval_shape(function, *(jax.ShapeDtypeStruct((1, *s), t) for s, t in inputs.values()))
        shapes = {name: list(array.shape[1:]) for name, array in one.items()}
        program, about = FORMATS[kind](part, model, tensors, function, inputs, shapes)
        place = path if part == "encoder" else decoder_path(path)
        written.append((place, program, {"format": kind, **about, **describe(part, model, inputs, shapes)}))
    with outputs.in_one_sentence(output):
        output.mkdir(parents=True, exist_ok=True)
        for place, program, described in written:
            write_whole(place, program)
            write_whole(place.with_name(f"{place.name}.json"), f"{json.dumps(described, indent=1)}\n")
    return path


def decoder_path(encoder: AnyPath) -> AnyPath:
    """Path of the decoder's program, from that of the encoder's."""
    return encoder.with_name(f"{encoder.stem}.decoder{encoder.suffix}")


def encoder_of(model: Stellar, params: dict) -> tuple[Callable[[jax.Array], dict[str, jax.Array]], Inputs]:
    """A function and its inputs: images (batch, H, W, 3) uint8 -> name in FEATURES -> array, float32.

    With a classifier, the function also returns "probability" (batch, classes).
    """

    def encode(images):
        features = api.encode(model, params, images)
        found = {name: getattr(features, name) for name in FEATURES}
        if model.classifier is not None:
            tokens = Tokens(cls=features.cls, S=features.sparse, U=None)
            logits = model.classifier.apply({"params": jax.device_put(params["classifier"])}, tokens)
            found["probability"] = jax.nn.softmax(logits)
        return found

    return encode, {"images": ((*2 * (model.encoder.image_size,), 3), np.uint8)}


def decoder_of(model: Stellar, params: dict) -> tuple[Callable[..., dict[str, jax.Array]], Inputs]:
    """A function and its inputs: S (batch, r, d), L (batch, n, r) -> "pixels", or "logits" of codes."""
    encoder, grid = model.encoder, model.grid(*2 * (model.encoder.image_size,))

    def decode(sparse, spatial):
        Z = jnp.einsum("bnr,brd->bnd", spatial, sparse)
        decoded = model.apply({"params": params}, Z, grid, method="decode")
        return {"logits": decoded} if model.decoder.codes else {"pixels": jnp.clip(decoded, 0, 1)}

    r = encoder.queries
    inputs = {"sparse": (r, encoder.sizes.width), "spatial": (math.prod(grid), r)}
    return decode, {name: (shape, np.float32) for name, shape in inputs.items()}


def to_stablehlo(part, model: Stellar, params: dict, function, inputs: Inputs, _) -> tuple[bytes, dict]:
    """The serialized program of `jax.export`, for all PLATFORMS, and facts for the JSON file."""
    (batch,) = jax.export.symbolic_shape("batch")
    given = [jax.ShapeDtypeStruct((batch, *shape), kind) for shape, kind in inputs.values()]
    exported = jax.export.export(jax.jit(function), platforms=PLATFORMS)(*given)
    convention = {"calling_convention_version": exported.calling_convention_version}
    about = {"platforms": list(exported.platforms), **convention, "jax": jax.__version__}
    return bytes(exported.serialize()), about


def to_onnx(
    part: str, model: Stellar, params: dict, function, inputs: Inputs, shapes: dict[str, list[int]]
) -> tuple[bytes, dict]:
    """The serialized ONNX graph, and facts for the JSON file; `shapes` are those of the outputs."""
    try:
        from sparse_vis.interop import onnx_graph
    except ModuleNotFoundError as error:
        if error.name != "onnx":
            raise
        raise UserError('--format=onnx needs the package onnx: pip install -e ".[onnx]"') from None
    if part == "encoder":
        graph = onnx_graph.build(model, params, shapes)
    else:
        every = {name: list(shape) for name, (shape, _) in inputs.items()} | shapes
        graph = onnx_graph.build_decoder(model, params["decoder"], every)
    return graph.SerializeToString(), {"opset": onnx_graph.OPSET}


FORMATS = {"stablehlo": to_stablehlo, "onnx": to_onnx}


def describe(part: str, model: Stellar, inputs: Inputs, shapes: dict[str, list[int]]) -> dict:
    """The content of an encoder's or decoder's JSON file, for both formats; `shapes` are of the outputs."""
    size = model.encoder.image_size

    def arrays(shapes: dict) -> dict:
        return {
            name: {"dtype": "float32", "shape": ["batch", *shape], "what": MEANING[name]}
            for name, shape in shapes.items()
        }

    common = {"outputs": arrays(shapes), "patch": model.patch, "grid": list(model.grid(size, size))}
    if part == "decoder":
        return {"inputs": arrays({name: shape for name, (shape, _) in inputs.items()}), **common}
    classes = {} if model.classifier is None else {"classes": list(model.classifier.classes)}
    return {
        "input": {
            "name": "images", "dtype": "uint8", "shape": ["batch", size, size, 3],
            "layout": "NHWC, RGB, 0 to 255",
        },
        "preprocessing": f"turn upright, resize the short side to {round(SHORT_SIDE * size)} px (bicubic, "
        f"antialiased), cut out the centre of {size}x{size} px; scaling and normalisation happen inside",
        **common,
        **classes,
    }  # fmt: skip


def main() -> None:
    parser = Parser(description="Write a model for other programs (docs/compatibility.md).")
    parser.add_argument("--checkpoint")
    parser.add_argument("--name")
    what = (
        "released: weights that PyTorch and sparse_vis read; stablehlo, onnx: encoder and decoder as "
        "programs (%(default)s)"
    )
    parser.add_argument("--format", choices=["released", *FORMATS], default="released", help=what)
    parser.add_argument("--output", help="folder for the exported model")
    probe = "file or folder of a classifier (default: the fine-tuned one, or the probe in the model's folder)"
    parser.add_argument("--probe", help=probe)
    given = parser.parse_args()
    source = given.checkpoint, given.output
    with outputs.writing(given.output, "export"):
        if given.format == "released":
            path, beside = export_released(*source, given.name, given.probe), "config.json"
        else:
            path = export_program(*source, given.format, given.name, given.probe)
            beside = f"{path.name}.json"
    print(f"wrote {path} and its {beside}")
    if given.format != "released":
        print(f"wrote {decoder_path(path)}, the decoder, and its .json")
