"""docs/visualization.md: what its command runs makes the pictures that it shows, of a tiny checkpoint too."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
from PIL import Image

from sparse_vis.train.log import JSONL
from tests.tiny_checkpoint import write_checkpoints

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "visualization.md"


def test_the_page_makes_its_pictures(tmp_path, monkeypatch):
    """In a folder where runs/quickstart is a tiny run; in this process, which has imported and compiled."""
    text = PAGE.read_text()
    (tmp_path / "docs" / "images").mkdir(parents=True)
    (tmp_path / "docs" / PAGE.name).write_text(text)
    workdir = tmp_path / "runs" / "quickstart"
    write_checkpoints(workdir, {3: 1})
    names = ("total", "reconstruction", "set_alignment", "health/L_entropy")
    row = ", ".join(f'"{name}": 1.0' for name in names)
    (workdir / JSONL).write_text("".join(f'{{"step": {s}, "time": 0.0, {row}}}\n' for s in (1, 2)))

    python, flag, code = shlex.split(re.search(r"^```\n(python -c .*?)\n```", text, re.M)[1])
    assert (python, flag) == ("python", "-c")
    monkeypatch.chdir(tmp_path)
    exec(code.replace("\\`", "`"), {})  # as a shell reads it

    shown = set(re.findall(r"\]\(images/(\w+\.png)\)", text)) - {"report.png"}
    assert shown == {path.name for path in (tmp_path / "docs" / "images").iterdir()} and len(shown) == 6
    for name in shown:
        assert np.asarray(Image.open(tmp_path / "docs" / "images" / name)).std() > 10
        assert (ROOT / "docs" / "images" / name).is_file()
    assert (ROOT / "docs" / "images" / "report.png").is_file()
