"""`sparse_vis.train`: the training of main.py as a call, e.g. in a notebook."""

import copy
import gc
import multiprocessing
import os
import re
import sys
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from sparse_vis import api
from sparse_vis.commands import run
from sparse_vis.config import settings
from sparse_vis.config.arguments import override, read_config
from sparse_vis.config.defaults import default_config
from sparse_vis.data import wrong_images
from sparse_vis.data.in_memory import check_items, described
from sparse_vis.data.packed import METADATA
from sparse_vis.data.sources import ADDRESSES, OBJECT, Source, announce, as_source
from sparse_vis.interop import step_folder
from sparse_vis.models.stellar import Stellar
from sparse_vis.runtime import host, progress
from sparse_vis.runtime.errors import UserError, reworded
from sparse_vis.runtime.paths import AnyPath, as_path, expanded
from sparse_vis.train.distributed import held
from sparse_vis.train.log import JSONL
from sparse_vis.train.stop import StopCall
from sparse_vis.viz.figures import read_metrics


def in_python(text: str) -> str:
    """An error's sentence with the names of arguments instead of the flags of main.py."""
    sections = default_config()

    def argument(match: re.Match) -> str:
        flag, name = match.groups()
        if name in ("data.source", "data.path"):
            return "data"
        known = flag or name.split(".")[0] in sections  # config.json is a file
        return name.replace(".", "__") if known else match[0]

    text = re.sub(r"(--)?\bconfig\.([a-z_]\w*(?:\.[a-z_]\w*)*)", argument, text)
    return re.sub(r"--(?=config=|workdir)", "", text).replace("repeat the command", "repeat the call")


@reworded(in_python)
def train(
    data: Any, config: Any, workdir: Any, init: Any, given: dict[str, Any]
) -> tuple[Stellar, dict, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """What calling `sparse_vis.train` does; train/__init__.py has the documentation."""
    # multiprocessing sets this in a new process while that runs the script of its parent.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        sys.exit(
            "error: with data__workers, each worker process runs the script that calls sparse_vis.train; put "
            'the call below `if __name__ == "__main__":`, or set data__workers=0.'
        )
    if jax.process_count() > 1:
        raise UserError("sparse_vis.train runs in one process; for several start main.py with --distributed.")
    config = copy.deepcopy(config) if isinstance(config, ConfigDict) else read_config(config)
    source = choose_images(config, data)
    if init is not None:
        given = {"init": init, **given}
    for name, value in given.items():
        if name.replace("__", ".") in ("data.source", "data.path"):
            raise UserError(f"{name} is not a setting of sparse_vis.train; give the images as its `data`.")
        override(config, name.replace("__", "."), value)
    settings.check(config)
    place = as_path(expanded(workdir or f"runs/{config.name}", "workdir", buckets=True))
    if workdir is None:
        check_same(config, place)
    host.keep_programs()
    if source is not None:
        if config.data.on_error == "stop":
            check_items(source, data)
        announce(source)
    stop = StopCall()
    try:
        with stop, held(place, "training", "workdir"):
            run.train(config, place, stop, source=source, show=progress.update)
    finally:
        gc.unfreeze()  # the loop freezes all objects, and this process may run for long
    stop.end()
    model, params = api.load(place)
    return model, params, read_metrics(place / JSONL)


def choose_images(config: ConfigDict, data: Any) -> Source | None:
    """Make config.data name the images; returns them if they are in memory, else None."""
    names, source = config.data, None
    if isinstance(data, str | os.PathLike):
        text = os.path.expanduser(os.fspath(data))
        packed = (as_path(text) / METADATA).is_file()
        names.source, names.path = "packed" if packed else "folder", text
        if text.partition(":")[0] in ADDRESSES:
            names.source, names.path = text, ""
    else:
        data = _pixels(data)
        source = as_source(data, max_pixels=names.max_pixels)
        names.source, names.path = OBJECT, described(source, data)
    names.split = ""
    return source


def _pixels(data: Any) -> Any:
    """An array of images as uint8 (N, H, W, 3), one of paths as a list; other objects unchanged."""
    if not isinstance(data, np.ndarray | jax.Array):
        return data
    if data.dtype.kind in "OU":
        return data.tolist()
    if what := wrong_images.shape_fault(data) or wrong_images.value_fault(data):
        raise UserError(what)
    if data.dtype == np.uint8:
        return np.asarray(data)
    return np.uint8(np.rint(255 * np.clip(np.asarray(data, np.float32), 0, 1)))


def check_same(config: ConfigDict, workdir: AnyPath) -> None:
    """Raise UserError if the workdir, which the user has not given, has a run of other images or settings."""
    if not (newest := step_folder.newest_step(workdir)):
        return
    saved = step_folder.read_config(step_folder.find_step(workdir / step_folder.FOLDER / str(newest)))
    if changed := settings.check_resume(saved, settings.plain(config), workdir):
        raise UserError(
            f"{workdir} holds a run of other images or settings ({'; '.join(changed)}); give "
            f"workdir= another folder, or workdir={str(workdir)!r} to continue that run with these."
        )
