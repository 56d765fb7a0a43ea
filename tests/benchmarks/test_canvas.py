"""What crops lose on a canvas: known pictures."""

import sys

import numpy as np
import pytest
from PIL import Image

from benchmarks.evidence import canvas
from sparse_vis.runtime.errors import UserError

SIDE = 2048


def ramp():
    """Brightness that grows from left to right and from top to bottom."""
    line = np.linspace(0, 255, SIDE)
    return np.repeat(((line + line[:, None]) / 2)[..., None], 3, axis=2).astype(np.uint8)


def test_squares_of_a_ramp_are_the_crops():
    rng = np.random.default_rng(0)
    rows = canvas.agreement(ramp(), 64, (0.1, 0.3), rng)
    assert len(rows) == canvas.CROPS
    for row in rows:  # 50 dB: a level of 256 apart
        assert row.keys() == {0, *canvas.CANVASES} and min(row.values()) > 50


def test_stripes_finer_than_a_view_disturb_crops_of_the_original_alone():
    stripes = np.where(np.arange(SIDE) % 6 < 3, 255, 0).astype(np.uint8)
    image = np.broadcast_to(stripes[:, None], (SIDE, SIDE, 3)).copy()
    rows = canvas.agreement(image, 64, (0.5, 0.9), np.random.default_rng(0))
    assert np.mean([row[0] for row in rows]) < 12  # black or white where grey is right
    assert np.mean([row[256] for row in rows]) > 30


def test_the_command_prints_a_table(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["canvas", f"--images={tmp_path}"])
    Image.new("RGB", (300, 200)).save(tmp_path / "small.png")
    with pytest.raises(UserError, match=f"{tmp_path} has no image with a side of {SIDE} px; give larger"):
        canvas.main()
    monkeypatch.setattr(canvas, "CROPS", 1)
    Image.fromarray(ramp()).save(tmp_path / "large.png")
    canvas.main()
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("1 images") and len(printed) == 5
    assert printed[3].startswith("| global: 224 px from 0.36 to 1.0 of the image | ")
