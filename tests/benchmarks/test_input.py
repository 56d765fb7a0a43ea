"""The benchmark of the input pipeline, at the smallest sizes."""

import json
import sys

from benchmarks.speed import input as input_benchmark


def test_input_counts_every_form_and_split(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(input_benchmark, "SIZES", ((96, 64, 2), (640, 480, 2)))
    monkeypatch.setattr(input_benchmark, "SPLITS", ((0, 1),))
    monkeypatch.setattr(input_benchmark, "BATCHES", 1)
    out = tmp_path / "input.json"
    monkeypatch.setattr(sys, "argv", ["input.py", "--rounds=1", f"--json={out}"])
    input_benchmark.main()
    found = json.loads(out.read_text())
    small, large = found["decoding"]
    assert small["reduced_psnr"] is None and large["reduced_psnr"] > 30
    assert small["pillow_psnr"] is None and large["pillow_psnr"] is None
    assert found["pipeline"][0]["per_core"] > 0 and "the mark is 500" in capsys.readouterr().out
