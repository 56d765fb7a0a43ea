"""Check that the records have what the evaluations need, before any image is encoded."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Int

from sparse_vis.data.sources import FolderSource
from sparse_vis.evals.dataset import Data, Part
from sparse_vis.evals.maps.label_maps import check_maps
from sparse_vis.evals.task import Task
from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.names import quoted

LACKING = {
    "label": "one class per image: a folder with a subfolder per class has them, scenes have them",
    "class": "class labels: a folder with a subfolder per class has them, scenes have them",
    "mask": "true instance masks: only scenes have them",
    "map": "label maps: scenes have them, --config.eval.masks=FOLDER gives them to others",
}


def check_needs(data: Data, tasks: Mapping[str, Task]) -> None:
    """Refuse tasks that need what the records do not have.

    Args:
        data: of the evaluations. tasks: name → Task, of all requested tasks.

    Raises:
        UserError: names the task, what it lacks and for which images; or a damaged image or label map.
    """
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
    """Refuse too few images, or images of a single class, if that is known without reading them."""
    kind = "train" if part_name.endswith("train") else "test"
    least = task.least[kind == "test"]
    labels = known_labels(part) if labelled else None
    count = len(part) if labels is None else np.count_nonzero(labels >= 0)
    if count < least:
        what = f"at least {least} {kind} images" + (" with a class" if labelled else "")
        remedy = f"raise config.eval.{kind}_records or "
        raise _refusal(name, what, f"there are {count}, of {part.source!r}", remedy)
    if labels is not None and least > 1 and len(found := np.unique(labels[labels >= 0])) < 2:
        only = part.source.classes[found[0]]
        found_one = f"all that it has, of {part.source!r}, are {quoted(only)}"
        raise _refusal(name, f"{kind} images of two classes", found_one)


def _refusal(name: str, need: str, found: str, remedy: str = "") -> UserError:
    """The error for an evaluation that lacks something."""
    leave = f"leave {name!r} out of config.eval.tasks"
    return UserError(f"the evaluation {name!r} needs {need}; {found}: {remedy}{leave}.")


def known_labels(part: Part) -> Int[np.ndarray, " N"] | None:
    """The class of every image of a folder, -1 for none; None for other sources, which must be read."""
    if not isinstance(part.source, FolderSource):
        return None
    numbers = {name: number for number, name in enumerate(part.source.classes)}
    names = (part.source.names[int(index)].partition("/") for index in part.indices)
    return np.array([numbers[first] if slash else -1 for first, slash, _ in names])
