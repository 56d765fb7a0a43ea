"""Every command that writes, with what it should have written when it is done."""

from __future__ import annotations

import functools
import json
import pathlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.faults import kills
from benchmarks.faults.samples import picture_folder


@dataclass(frozen=True)
class Command:
    """A command that writes a folder.

    Attributes:
        name: for the table. program, arguments: of `process.start`; the output is `out`.
        contents: folder -> what an undisturbed command writes there, each time the same.
        prepare: makes what must be there before.
    """

    name: str
    program: str
    arguments: list[str]
    out: pathlib.Path
    contents: Callable[[pathlib.Path], Any]
    prepare: Callable[[pathlib.Path], Any] = lambda out: None


def files(pattern: str, out: pathlib.Path) -> dict[str, bytes]:
    """Bytes of files by name."""
    return {path.name: path.read_bytes() for path in sorted(out.glob(pattern))}


def metrics(out: pathlib.Path) -> dict:
    """What evaluation.json says but for the time it took."""
    tasks = json.loads((out / "evaluation.json").read_text())["encoders"]["trained"]
    return {name: task["metrics"] for name, task in tasks.items()}


def commands(folder: pathlib.Path, out: pathlib.Path) -> list[Command]:
    """All of them, on one trained run and one folder of images.

    Args:
        folder: for these two. out: what the commands write.
    """
    run, images = kills.calm(folder), picture_folder(folder / "images", 60)
    given, output = [f"--checkpoint={run}", f"--input={images}"], f"--output={out}"
    evaluate = [f"--workdir={out}", "--mode=evaluate", "--config.eval.tasks=('knn',)"]
    some = functools.partial(functools.partial, files)
    return [
        Command("training", "main.py", kills.run_flags(out, 0), out, kills.final),
        Command("evaluation", "main.py", [f"--config={kills.TINY}", *evaluate], out, metrics,
                lambda out: shutil.copytree(run, out, dirs_exist_ok=True)),
        Command("extraction", "-m sparse_vis extract", [*given, output, "--shard-size=4", "--batch=4"], out,
                some("*.parquet")),
        Command("packing", "-m sparse_vis pack", [given[1], output, "--shard-size=4"], out, some("*")),
        Command("export", "-m sparse_vis export", [given[0], output], out, some("*")),
        Command("reconstruction", "-m sparse_vis reconstruct", [*given, output], out, some("**/*.png")),
        Command("report", "-m sparse_vis report", [given[0], f"--images={images}", f"{output}/page.html"],
                out, some("*"), lambda out: out.mkdir(exist_ok=True)),
    ]  # fmt: skip
