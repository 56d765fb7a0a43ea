"""Write a model for other programs: `python -m sparse_vis.export --checkpoint=WORKDIR --output=DIR`.

Format "released": a safetensors file in the published names and torch layouts, and its config.json. What we
write, the published PyTorch code reads, and `sparse_vis.load(DIR)` reads back bit by bit.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import shutil

from safetensors.numpy import save_file

from sparse_vis.errors import UserError, command_line
from sparse_vis.interop import manifest
from sparse_vis.interop.load import read_model
from sparse_vis.interop.released import params_to_tensors, unused_tensors


def export_released(checkpoint: str, output: pathlib.Path, name: str | None = None) -> pathlib.Path:
    """Write a model in the released form.

    Args:
        checkpoint: anything that `sparse_vis.load` takes. output: folder, made if needed.
        name: of the model in a release of several.

    Returns:
        The path of the weights.

    Raises:
        UserError: the checkpoint cannot be read, or `output` holds another model.
    """
    found = read_model(checkpoint, name)
    weights = output / f"{found.config.name}.safetensors"
    if (output / "config.json").exists():
        raise UserError(f"{output} already holds a config.json; give a new --output folder.")
    output.mkdir(parents=True, exist_ok=True)
    entry = manifest.from_config(found.config, weights.name)
    if found.tokenizer is not None and found.tokenizer.is_file():
        shutil.copyfile(found.tokenizer, output / found.tokenizer.name)
        entry["vq_model"]["weights"] = found.tokenizer.name
    tensors = params_to_tensors(found.params, found.config.model.patch)
    # The module declares more tensors than it reads; theirs if we have them, else zeros.
    save_file({**unused_tensors(found.params), **found.unused, **tensors}, weights, {"format": "pt"})
    (output / "config.json").write_text(json.dumps({"models": {found.config.name: entry}}, indent=1))
    return weights


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m sparse_vis.export", description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, help="workdir, step folder, released file or folder, or hf:// address")
    parser.add_argument("--name", help="model of a release folder that holds several")
    parser.add_argument("--format", choices=["released"], default="released", help="form of the weights")
    parser.add_argument("--output", required=True, type=pathlib.Path, help="folder to write")
    arguments = parser.parse_args()
    print(f"wrote {export_released(arguments.checkpoint, arguments.output, arguments.name)} and its config.json")


if __name__ == "__main__":
    command_line(main)
