"""Check, before any image is encoded, that the records have what the evaluations need."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

import jax
import numpy as np

from sparse_vis.data.compose import ComposedSource
from sparse_vis.data.decode import decode
from sparse_vis.data.records import in_batches, known_labels, name_of, none_usable
from sparse_vis.evals.dataset import Data, Part, about_part
from sparse_vis.evals.maps.label_maps import check_maps
from sparse_vis.evals.task import Task
from sparse_vis.runtime import skipped
from sparse_vis.runtime.batches import in_shares, of_first
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.files import read_json, write_json
from sparse_vis.runtime.names import quoted
from sparse_vis.runtime.paths import AnyPath
from sparse_vis.runtime.progress import Progress

LACKING = {
    "label": "one class per image (from a folder with one subfolder per class, or from scenes)",
    "class": "class labels (from a folder with one subfolder per class, or from scenes)",
    "mask": "true instance masks (scenes and pictures have them)",
    "map": "label maps (scenes and pictures have them; for other images give --config.eval.masks=FOLDER)",
}
LOOKED_AT = 16  # images that a thread decodes at a time, to see whether it can
FOUND = "unusable.json"  # file in the workdir with the images that cannot be decoded


def check_needs(data: Data, tasks: Mapping[str, Task]) -> None:
    """Raise UserError if a task (by name) needs what the records do not have, or a label map is damaged."""
    for part_name, part in data.parts.items():
        record = part.example()
        has = {*record, *(("map",) if part.map_classes else ())}
        has |= {"class"} if has & {"label", "labels"} else set()
        for name, task in tasks.items():
            for need in set(task.needs) - has:
                raise _refusal(name, LACKING[need], f"{part.source!r} has none")
            if "map" in task.needs:
                check_maps(part)
        for name, task in tasks.items():
            labelled = "label" in task.needs or ("class" in task.needs and "label" in record)
            if not labelled or part_name in data.labelled:
                _check_count(name, task, part_name, part, labelled)


def _check_count(name: str, task: Task, part_name: str, part: Part, labelled: bool) -> None:
    """Raise UserError for too few images, or images of a single class, if this is known without reading."""
    kind = "train" if part_name.endswith("train") else "test"
    least = task.least[kind == "test"]
    labels = known_labels(part.source) if labelled else None
    labels = None if labels is None else labels[part.indices]
    count = len(part) if labels is None else np.count_nonzero(labels >= 0)
    if count < least:
        what = f"at least {least} {kind} images" + (" with a class" if labelled else "")
        remedy = f"raise config.eval.{kind}_records or "
        raise _refusal(name, what, f"there are {count}, of {part.source!r}", remedy)
    if labels is not None and least > 1 and len(found := np.unique(labels[labels >= 0])) < 2:
        only = f"all labelled images of {part.source!r} are of class {quoted(part.source.classes[found[0]])}"
        raise _refusal(name, f"{kind} images of two classes", only)


def _refusal(name: str, need: str, found: str, remedy: str = "") -> UserError:
    leave = f"leave {name!r} out of config.eval.tasks"
    return UserError(f"the evaluation {name!r} needs {need}; {found}: {remedy}{leave}.")


def without_unusable(data: Data, workdir: AnyPath) -> Data:
    """The data without images that cannot be decoded, which are listed in skipped.txt of the workdir.

    All images are decoded before any is encoded, so that all tasks and encoders use the same images, which
    evaluation.json identifies. unusable.json keeps the result for parts that do not change. Raises UserError
    if nothing is left of a part.
    """
    path, skips, parts, now = workdir / FOUND, [], {}, {}
    try:
        before = read_json(path)["parts"]
    except (OSError, ValueError, KeyError):
        before = {}
    for name, part in data.parts.items():
        identity = about_part(part) | {"max_pixels": getattr(part.source, "max_pixels", None)}
        found = before.get(name, {})
        if not of_first(np.array([found.get("part") == identity]))[0]:
            found = {"part": identity, "unusable": _unusable(name, part)}
        if identity["images_sha256"]:  # without it, a changed part would not be noticed
            now[name] = found
        rows = [row for row, _, _ in found.get("unusable", ())]
        left = part.indices[of_first(~np.isin(part.indices, rows))]
        of_part = [(image, why) for _, image, why in found.get("unusable", ())]
        if not len(left):
            raise none_usable(len(part), of_part, f"{name} images")
        parts[name] = dataclasses.replace(part, indices=left)
        skips += of_part
    if now != before and jax.process_index() == 0:
        write_json(path, {"parts": now})
    if not skips:
        return data
    if jax.process_index() == 0:
        skipped.append(workdir, skipped.lines(skips))
    again = f"delete {path} to check all images again"
    print(
        f"{len(skips)} images skipped; {workdir / skipped.FILE} lists them with the reasons; {again}",
        flush=True,
    )
    about = data.about | {"parts": {name: about_part(part) for name, part in parts.items()}}
    return dataclasses.replace(data, parts=parts, about=about)


def _unusable(name: str, part: Part) -> list[list]:
    """Row, name and reason of every image that cannot be decoded; each process decodes its share."""
    if isinstance(part.source, ComposedSource):  # its images are computed, not read from files
        return []
    progress, usable = Progress(f"looking at {name} images", len(part)), []

    def check(rows: np.ndarray) -> dict[str, np.ndarray]:
        return {"usable": np.array([_fault(part, row) is None for row in rows.tolist()])}

    def batches(rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        return in_batches(check, part.indices[rows], LOOKED_AT, part.threads)

    for found in in_shares(len(part), LOOKED_AT, batches, lambda found: found):
        usable.append(found["usable"])
        progress.add(len(usable[-1]))
    bad = part.indices[~np.concatenate(usable)].tolist()
    return [[row, name_of(part.source, row), _fault(part, row) or "could be read later"] for row in bad]


def _fault(part: Part, row: int) -> str | None:
    """Why an image cannot be decoded; None if it can."""
    try:
        decode(part.source[int(row)])
    except UserError as error:
        return str(error)
    return None
