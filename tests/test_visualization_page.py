"""docs/visualization.md: its command and its code run, on a tiny checkpoint."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from sparse_vis.train.progress import JSONL
from tests.tiny_checkpoint import write_checkpoints

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "visualization.md"


def test_the_page_makes_its_pictures(tmp_path):
    """The command as it stands there, in a folder where runs/quickstart is a tiny run."""
    text = PAGE.read_text()
    (tmp_path / "docs" / "images").mkdir(parents=True)
    (tmp_path / "docs" / PAGE.name).write_text(text)
    workdir = tmp_path / "runs" / "quickstart"
    write_checkpoints(workdir, {3: 1})
    names = ("total", "reconstruction", "set_alignment", "health/L_entropy")
    row = ", ".join(f'"{name}": 1.0' for name in names)
    (workdir / JSONL).write_text("".join(f'{{"step": {s}, "time": 0.0, {row}}}\n' for s in (1, 2)))
    command = re.search(r"^```\n(python -c .*?)\n```", text, re.M)[1].replace("python", sys.executable, 1)
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shown = set(re.findall(r"\]\(images/(\w+\.png)\)", text)) - {"report.png"}
    assert shown == {path.name for path in (tmp_path / "docs" / "images").iterdir()} and len(shown) == 6
    for name in shown:
        assert np.asarray(Image.open(tmp_path / "docs" / "images" / name)).std() > 10
        assert (ROOT / "docs" / "images" / name).is_file()
    assert (ROOT / "docs" / "images" / "report.png").is_file()
