"""Two processes with two devices each do what one does: weights of init, codes, fine-tuning, evaluation."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from main_process import ROOT, WAIT
from PIL import Image

from sparse_vis import api
from sparse_vis.config import settings
from tests.launch.test_distributed import port
from tests.tiny_checkpoint import write_checkpoints
from tests.train.pair_process import configuration


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder that the processes have worked in, and what was printed."""
    folder, draw = tmp_path_factory.mktemp("pair"), np.random.default_rng(0)
    for c, name in enumerate(("green", "red")):
        for i in range(19 - c):
            which = draw.integers(0, 2, (4, 4)).astype(np.uint8).repeat(8, axis=0).repeat(8, axis=1)
            pixels = draw.integers(0, 60, (32, 32, 3), np.uint8)
            pixels[..., c] += 90 + 90 * which
            for kind, array in (("images", pixels), ("maps", which)):
                (folder / kind / name).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(folder / kind / name / f"{i}.png")
    write_checkpoints(folder / "weights", {1: 1}, config=configuration(folder, folder, ()))
    command = [sys.executable, "-m", "tests.train.pair_process", str(folder), f"127.0.0.1:{port()}"]
    environment = {**os.environ, "PJRT_NPROC": "32", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=WAIT)
    logs = {path.stem: path.read_text() for path in folder.glob("*.log")}
    assert run.returncode == 0, (run.stderr, logs)
    return folder, run.stdout.splitlines()[-1].split(), logs


def encoder(workdir: pathlib.Path) -> np.ndarray:
    """All parameters of the encoder in the newest checkpoint."""
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(api.load(workdir)[1]["encoder"])])


def results(workdir: pathlib.Path) -> dict[str, dict]:
    """What was measured there: task -> numbers."""
    found = json.loads((workdir / "evaluation.json").read_text())["encoders"]["trained"]
    return {task: entry["metrics"] for task, entry in found.items()}


def test_a_run_on_codes_trains_saves_and_reconstructs(done):
    folder, (*_, alone, _), logs = done
    assert alone == "0", logs
    lines = [
        json.loads(line) for line in (folder / "alone/pretrained/metrics.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in lines] == [1, 2]
    # These small features say nothing of the images: about log(codes) nats a patch.
    codes = settings.read(folder / "alone/pretrained").model.tokenizer.codes
    assert lines[0]["reconstruction"] == pytest.approx(np.log(codes), abs=1.0)
    model, params = api.load(folder / "alone/pretrained")
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    pixels = np.asarray(api.reconstruct(model, params, api.encode(model, params, images)))
    assert pixels.shape == (2, 32, 32, 3) and pixels.min() >= 0 and pixels.max() <= 1


def test_a_pair_trains_from_weights_towards_codes_as_one_process(done):
    folder, *_ = done
    weights, found, expected, tuned = (
        encoder(folder / name)
        for name in ("weights", "pair/pretrained", "alone/pretrained", "pair/finetuned")
    )
    moved = np.linalg.norm(expected - weights)
    assert moved > 0.1 and np.linalg.norm(found - expected) < 1e-3 * moved
    assert np.linalg.norm(tuned - found) > 0.1


def test_a_pair_measures_what_one_process_measures(done):
    folder, *_ = done
    found, expected = (results(folder / kind / "pretrained") for kind in ("pair", "alone"))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), found, expected)
    assert expected["knn"]["mean_U"]["k10"] > 0.5 and len(expected["segmentation"]) == 6
    assert expected["reconstruction_probe"]["Z, centre"]["psnr"] > 5
    assert 0 <= results(folder / "pair/finetuned")["classifier"][""]["accuracy"] <= 1


def test_an_error_of_one_process_ends_both(done):
    _, (first, second, _, seconds), logs = done
    assert first != "0" and second == "1" and float(seconds) < 20
    assert "error: process 1 of 2: cannot decode 'red/0.png'" in logs["pair1"]
