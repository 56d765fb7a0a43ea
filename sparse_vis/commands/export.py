"""Write a model for other programs: `python -m sparse_vis export --checkpoint=WORKDIR --output=DIR`.

Format "released": a safetensors file with the published names and torch layouts, and its config.json. The
published PyTorch code can read it, and `sparse_vis.load(DIR)` restores the weights exactly.
Formats "stablehlo" and "onnx": the encoder as a program that runs without this package (programs.py).
"""

from __future__ import annotations

import pathlib
import shutil
import sys

from safetensors import SafetensorError

from sparse_vis.commands.programs import FORMATS, export_program
from sparse_vis.interop import manifest
from sparse_vis.interop.formats import write_safetensors
from sparse_vis.interop.load import PLACES, Loaded, read_model
from sparse_vis.interop.maskgit import load_tokenizer
from sparse_vis.interop.released import Tensors, params_to_tensors, teacher_to_tensors, unused_tensors
from sparse_vis.runtime import lock, paths
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.files import whole, write_json
from sparse_vis.runtime.tools import Parser, check_folder


def released_tensors(found: Loaded) -> Tensors:
    """All tensors of a released file: the model's, its teacher's if it has one, and unused ones.

    Args:
        found: a model as read.
    """
    patch, teacher = found.config.model.patch, found.teacher
    # The published module declares tensors that it does not use: those of the source, or else zeros.
    return {
        **unused_tensors(found.params, teacher=teacher is not None),
        **found.unused,
        **(teacher_to_tensors(teacher, patch) if teacher is not None else {}),
        **params_to_tensors(found.params, patch),
    }


def export_released(source: str, output: pathlib.Path, name: str | None = None) -> pathlib.Path:
    """Write a model in the released form.

    Args:
        source: anything that `sparse_vis.load` accepts. output: folder, created if needed.
        name: which model, if a release holds several.

    Returns:
        The path of the weights.

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
    try:
        output.mkdir(parents=True, exist_ok=True)
        with whole(weights) as partial:
            write_safetensors(tensors, partial)
        if copy is not None:
            with whole(copy) as partial:
                shutil.copyfile(found.tokenizer, partial)
        # Last, so that an interrupted export is never taken for a complete one.
        write_json(output / "config.json", {"models": {called: entry}})
        shutil.copymode(output / "config.json", weights)  # safetensors makes files readable by the owner only
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"{output} cannot be written ({error}); give another --output folder, or make room and repeat "
            "the command."
        ) from error
    return weights


def main() -> None:
    """Command line; see --help."""
    parser = Parser(
        prog=sys.argv[0],
        description="Write a model for other programs (docs/compatibility.md).",
    )
    add = parser.add_argument
    add("--checkpoint", required=True, type=paths.place, help=PLACES)
    add("--name", help="model of a release folder that holds several")
    add(
        "--format",
        choices=["released", *FORMATS],
        default="released",
        help="weights for PyTorch and us, or the encoder for jax.export or onnxruntime (%(default)s)",
    )
    add("--output", required=True, type=paths.path, metavar="FOLDER", help="to write")
    given = parser.parse_args()
    check_folder(given.output)
    with lock.hold(given.output, "export"):
        if given.format == "released":
            path, beside = export_released(given.checkpoint, given.output, given.name), "config.json"
        else:
            path = export_program(given.checkpoint, given.output, given.format, given.name)
            beside = f"{path.name}.json"
    print(f"wrote {path} and its {beside}")
