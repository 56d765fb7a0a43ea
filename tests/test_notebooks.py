"""The notebooks run, their own asserts included, and make pictures like those stored with them."""

from __future__ import annotations

import base64
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient.exceptions import CellExecutionError
from PIL import Image

from notebooks.execute import execute

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MAX_BYTES = 500_000


def code(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def pictures(notebook) -> list[np.ndarray]:
    data = [output.get("data", {}) for cell in code(notebook) for output in cell.outputs]
    found = [base64.b64decode(d["image/jpeg"]) for d in data if "image/jpeg" in d]
    return [np.asarray(Image.open(io.BytesIO(p)).convert("RGB")) for p in found]


def failures(notebook) -> list[str]:
    """What a reader would see of a cell that went wrong, or that warns."""
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    return [
        output.get("text", output.get("ename", ""))
        for output in outputs
        if output.output_type == "error" or (output.output_type == "stream" and output.name == "stderr")
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, monkeypatch):
    if path.stem.startswith("04"):  # it trains 150 steps, for which better code is worth it
        monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"].replace("level=0", "level=1"))
    stored, found = nbformat.read(path, as_version=4), execute(path)
    assert [cell.execution_count for cell in code(found)] == list(range(1, len(code(found)) + 1))
    made, shown = pictures(found), pictures(stored)
    assert len(made) == len(shown) >= 2
    for new, old in zip(made, shown, strict=True):
        assert new.std() > 10, "an empty picture"
        assert abs(new.shape[1] / old.shape[1] - 1) < 0.1, "another picture than the stored one"


@pytest.mark.fast
def test_a_notebook_checks_itself_and_is_stored_with_its_outputs():
    assert [path.name[:3] for path in NOTEBOOKS] == ["01_", "02_", "03_", "04_"]
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        assert path.stat().st_size < MAX_BYTES, path.name
        counts = [cell.execution_count for cell in code(notebook)]
        assert counts == list(range(1, len(counts) + 1)), f"{path.name}: python notebooks/execute.py"
        assert not failures(notebook), path.name
        assert sum("assert" in cell.source for cell in code(notebook)) >= 3, path.name


@pytest.mark.fast
def test_the_page_lists_the_notebooks_in_order_and_links_lead_somewhere():
    page = (FOLDER / "README.md").read_text()
    assert re.findall(r"\]\((\w+\.ipynb)\)", page) == [path.name for path in NOTEBOOKS]
    for path in NOTEBOOKS:
        for cell in nbformat.read(path, as_version=4).cells:
            for link in re.findall(r"\]\(([^)#]+)\)", cell.source) if cell.cell_type == "markdown" else []:
                assert (FOLDER / link).exists(), (path.name, link)


def test_the_command_stores_the_outputs(tmp_path):
    """The command of notebooks/README.md, with a small notebook of its own as the argument."""
    path = tmp_path / "small.ipynb"
    cells = [nbformat.v4.new_code_cell("import sparse_vis; sparse_vis.load('scenes-tiny')[0].patch")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    done = subprocess.run(
        [sys.executable, "notebooks/execute.py", path], cwd=FOLDER.parent, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.startswith("small.ipynb: "), done.stderr
    (cell,) = code(nbformat.read(path, as_version=4))
    assert cell.execution_count == 1 and cell.outputs[-1].data["text/plain"] == "6"


def test_a_failed_check_stops_a_notebook(tmp_path):
    cells = [nbformat.v4.new_code_cell("assert 1 + 1 == 3, 'arithmetic'")]
    path = tmp_path / "wrong.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
    with pytest.raises(CellExecutionError, match="arithmetic"):
        execute(path)
