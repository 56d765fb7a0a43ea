"""A fitted classifier or segmenter as a safetensors file beside its model.

Its metadata have JSON under the key `sparse_vis.probe`: `format` (1), `kind`, the fields of the module (such
as `classes`, their names), `weights_crc32` (of the model's encoder and factorizer) and its `accuracy`.
"""

import contextlib
import dataclasses
import json
import os
from typing import Any

import jax
import numpy as np
import safetensors

from sparse_vis.interop.formats import read_safetensors, write_safetensors
from sparse_vis.interop.load import Loaded, is_shipped
from sparse_vis.interop.step_folder import FOLDER
from sparse_vis.models.classifier import LinearClassifier, NearestClassifier, Segmenter
from sparse_vis.runtime.checksums import crc32
from sparse_vis.runtime.errors import UserError, explained
from sparse_vis.runtime.files import CHECKSUM, checksum, on_disk, whole
from sparse_vis.runtime.paths import HUB, AnyPath, as_path, expanded
from sparse_vis.runtime.tools import check_folder

FILE, SEGMENTER, FORMAT, KEY = "probe.safetensors", "segmenter.safetensors", 1, "sparse_vis.probe"
KINDS = {"linear": LinearClassifier, "knn": NearestClassifier, "segmenter": Segmenter}
Classifier = LinearClassifier | NearestClassifier | Segmenter


class OtherWeightsError(UserError):
    """The probe was fitted for other weights."""


def weights_of(params: dict) -> int:
    """CRC-32 of the parameters that determine the tokens and L."""
    return crc32({name: params[name] for name in ("encoder", "factorizer")})


def place_of(path: AnyPath, file: str = FILE) -> AnyPath:
    """The path of a probe, given as a file or as the folder that holds it."""
    return path if path.suffix == ".safetensors" else path / file


def place_to_write(given: str | AnyPath, name: str, file: str = FILE) -> AnyPath:
    """`place_of` an argument. Raises UserError if it cannot be written, or would replace other tensors."""
    path = place_of(as_path(expanded(given, name, buckets=True)), file)
    check_folder(path.parent, name)
    if path.is_dir():
        raise UserError(f"{name}={path} is a folder, and a file cannot have its name; give another {name}.")
    unread = contextlib.suppress(OSError, safetensors.SafetensorError)  # absent or damaged: may be replaced
    with unread, on_disk(path) as file, safetensors.safe_open(file, framework="np") as there:
        text = (there.metadata() or {}).get(KEY)
        if text is None or '"finetuned": true' in text:
            what = "other tensors, not a probe" if text is None else "the classifier of a fine-tuning"
            raise UserError(f"{name}={path} holds {what}; give another {name}.")
    return path


def how_to_load(found: Loaded, path: str | AnyPath, name: str | None, probe: AnyPath) -> str:
    """In words, how to load the classifier at `probe` with its model `found`, read by `load(path, name)`."""
    call = ", ".join(repr(text) for text in (str(path), name) if text)
    folder = beside(path)
    if folder is not None and probe.absolute() == (folder / FILE).absolute() and not found.classifier:
        return f"sparse_vis.load({call}) and export find it beside the model"
    why = "without these, they find a probe only in the model's folder"
    if found.classifier:
        why = "without these, they take the classifier of the fine-tuning"
    load = f"load it with sparse_vis.load({call}, probe={str(probe)!r})"
    return f"{load}, and export it with --probe={probe}; {why}"


def head_of(found: Loaded, path: str | AnyPath, given: str | AnyPath | None, file: str = FILE) -> tuple:
    """(classifier, parameters, its description) of a model, or with file=SEGMENTER its segmenter; or ().

    It is read from `given`, a file or folder; UserError is raised if it is not there. Without `given`, a
    fine-tuned model's own classifier is used, or a file beside `path`, from which `found` was read; a file
    for other weights is not used, with a note.
    """
    if given is not None:
        name, other = ("probe", "segmenter") if file == FILE else ("segmenter", "probe")
        read = read_probe(place_of(as_path(expanded(given, name, buckets=True)), file), found.params)
        if isinstance(read[0], Segmenter) != (file == SEGMENTER):
            kind = "segmenter" if file == FILE else "classifier"
            raise UserError(f"{name}={given} is a {kind}; give it as {other}=.")
        return read
    if file == FILE and found.classifier:
        return (*found.classifier, {"weights_crc32": weights_of(found.params), "finetuned": True})
    folder = beside(path)
    if folder is None or not (folder / file).is_file():
        return ()
    try:
        return read_probe(folder / file, found.params)
    except OtherWeightsError as error:
        print(f"note: {error}", flush=True)
        return ()


def beside(path: str | AnyPath) -> AnyPath | None:
    """The folder in which a model's probe lies: its workdir, its release folder, or that of its file.

    None for models of the hub or of the package.
    """
    text = os.fspath(path)
    if text.startswith(HUB) or is_shipped(text):
        return None
    folder = as_path(expanded(path, "checkpoint", buckets=True))
    if not folder.is_dir():
        return folder.parent
    if folder.parent.name == FOLDER and folder.name.isdigit():
        folder = folder.parent
    return folder.parent if folder.name == FOLDER else folder


def write_probe(path: AnyPath, classifier: Classifier, tensors: dict, about: dict[str, Any]) -> None:
    """Write a classifier, its parameters, and further JSON values about it. Raises UserError."""
    kind = next(kind for kind, of in KINDS.items() if isinstance(classifier, of))
    fields = {f.name: getattr(classifier, f.name) for f in dataclasses.fields(classifier)}
    fields = {name: value for name, value in fields.items() if name not in ("parent", "name")}
    about = {"format": FORMAT, "kind": kind, **about, **fields}
    about = json.loads(json.dumps(about))  # tuples become lists, as when it is read, for the checksum
    with explained(OSError, f"{path} cannot be written", "give another place for the probe."):
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole(path) as partial:
            text = json.dumps({CHECKSUM: checksum(about), **about})
            write_safetensors({k: np.asarray(v) for k, v in tensors.items()}, partial, {KEY: text})


def read_probe(path: AnyPath, params: dict) -> tuple[Classifier, dict, dict[str, Any]]:
    """The classifier of a file for a model with these `params`, its parameters, and all of the file's JSON.

    Raises UserError if the file is missing, damaged, not a probe, of another format, or for other weights.
    """
    if not path.is_file():
        raise UserError(f"{path} is not a file; give a probe's file, or the folder that holds its {FILE}.")
    with on_disk(path) as place:
        tensors = read_safetensors(place)
        with safetensors.safe_open(place, framework="np") as file:
            text = (file.metadata() or {}).get(KEY)
    if text is None:
        raise UserError(f"{path} holds no probe; give a file that `python -m sparse_vis probe` wrote.")
    damages = ValueError, KeyError, TypeError, AttributeError
    with explained(damages, f"{path} is damaged", "fit it again, or restore it from a copy."):
        about = json.loads(text)
        if about.pop(CHECKSUM) != checksum(about):
            raise ValueError("its description has another checksum")
        if about["format"] != FORMAT:
            what = f"has format {about['format']}, but this version reads format {FORMAT}"
            raise UserError(f"{path} {what}; use the version that wrote it.")
        kind = KINDS[about["kind"]]
        names = [f.name for f in dataclasses.fields(kind) if f.name not in ("parent", "name")]
        classifier = kind(**{n: about[n] for n in names} | {"classes": tuple(about["classes"])})
    if about["weights_crc32"] != weights_of(params):
        raise OtherWeightsError(
            f"{path} was fitted for a model with other parameters; fit a probe for this one "
            "(python -m sparse_vis probe), or give the model for which it was fitted."
        )
    return classifier, jax.device_put(tensors), about
