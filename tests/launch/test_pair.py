"""Two processes with two devices each do what one does: weights of init, codes, fine-tuning, evaluation."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from main_process import ROOT, WAIT
from PIL import Image
from test_distributed import port

from sparse_vis import api
from tests.launch.pair_process import configuration
from tests.tiny_checkpoint import write_checkpoints


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
    command = [sys.executable, "-m", "tests.launch.pair_process", str(folder), f"127.0.0.1:{port()}"]
    environment = {**os.environ, "PJRT_NPROC": "32", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=WAIT)
    logs = {path.stem: path.read_text() for path in folder.glob("*.log")}
    assert run.returncode == 0, (run.stderr, logs)
    return folder, run.stdout.splitlines()[-1].split(), logs


def test_a_pair_trains_from_weights_towards_codes_and_fine_tunes_as_one_process(done):
    folder, (*_, alone, _), logs = done
    assert alone == "0", logs
    for name in ("pretrained", "finetuned"):
        found, expected = (api.load(folder / kind / name)[1] for kind in ("pair", "alone"))
        first = api.load(folder / "weights")[1]
        moved = difference(expected["encoder"], first["encoder"])
        assert moved > 1e-3 and difference(found, expected) < 1e-3 * moved, name


def difference(a, b) -> float:
    """Norm of the difference of two trees."""
    squares = jax.tree.map(lambda x, y: float(np.sum((np.asarray(x) - np.asarray(y)) ** 2)), a, b)
    return sum(jax.tree.leaves(squares)) ** 0.5


def test_a_pair_measures_what_one_process_measures(done):
    folder, *_ = done
    for name in ("pretrained", "finetuned"):
        found, expected = (
            json.loads((folder / kind / name / "evaluation.json").read_text())["encoders"]["trained"]
            for kind in ("pair", "alone")
        )
        assert found.keys() == expected.keys()
        for task, entry in expected.items():
            assert entry["metrics"]
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4, err_msg=task),
                found[task]["metrics"], entry["metrics"])


def test_an_error_of_one_process_ends_both(done):
    _, (first, second, _, seconds), logs = done
    assert first != "0" and second == "1" and float(seconds) < 20
    assert "error: process 1 of 2: cannot decode 'red/0.png'" in logs["pair1"]
