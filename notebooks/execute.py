"""Run notebooks and store their outputs: `python notebooks/execute.py --help`."""

from __future__ import annotations

import argparse
import os
import pathlib
import sys
import tempfile
import time

import nbformat
from nbclient import NotebookClient

FOLDER = pathlib.Path(__file__).resolve().parent
TIMEOUT = 900  # seconds a cell may take; for a machine that is busy with other things


def execute(path: pathlib.Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of a fresh kernel in a scratch folder; it imports this tree's package.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raises, a failed assert included.
    """
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.update(outputs=[], execution_count=None)
    root, interpreter = FOLDER.parent, pathlib.Path(sys.executable).parent
    env = os.environ | {"PYTHONPATH": str(root), "PATH": f"{interpreter}{os.pathsep}{os.environ['PATH']}"}
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("main.py", "configs"):  # what a notebook names as ../main.py
            pathlib.Path(scratch, name).symlink_to(root / name)
        folder = pathlib.Path(scratch, FOLDER.name)
        folder.mkdir()
        (folder / "images").symlink_to(FOLDER / "images")
        client = NotebookClient(
            notebook,
            timeout=TIMEOUT,
            startup_timeout=TIMEOUT,
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": str(folder)}},
        )
        client.execute(env=env)
    notebook.metadata.language_info = {"name": "python"}  # not the version of whoever ran it last
    return notebook


def main() -> None:
    """Command line; see --help."""
    parser = argparse.ArgumentParser(description="Run notebooks in fresh kernels and store their outputs.")
    everything = sorted(FOLDER.glob("*.ipynb"))
    parser.add_argument("files", nargs="*", type=pathlib.Path, help="(default: all of this folder)")
    paths = parser.parse_args().files or everything
    if missing := [path for path in paths if not path.is_file()]:
        parser.error(f"{missing[0]} is no file; this folder has {', '.join(p.name for p in everything)}")
    for path in paths:
        start = time.monotonic()
        nbformat.write(execute(path), path)
        print(
            f"{path.name}: {time.monotonic() - start:.0f} s, {path.stat().st_size / 1e3:.0f} kB", flush=True
        )


if __name__ == "__main__":
    main()
