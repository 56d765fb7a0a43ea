"""configs/reproduce_b16.py from end to end, on a release and an ImageNet of the same form but tiny."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from main_process import ROOT, WAIT, environment

from sparse_vis.evals.results import Results
from sparse_vis.evals.task import Result
from tests.data.test_tfds import prepare
from tests.evals.test_inception import TorchInception
from tests.evals.test_lpips import random_files

GOLDEN = Path(__file__).parents[1] / "golden"
COMMIT = "0123456789012345678901234567890123456789"
TINY = {
    "model.image_size": 64, "eval.batch": 4, "data.canvas": 96, "eval.linear_published.epochs": 2,
    "eval.linear_published.batch_size": 32, "eval.reconstruction_probe.epochs": 1,
    "eval.reconstruction_probe.width": 32, "eval.reconstruction_probe.layers": 1,
    "eval.reconstruction_probe.mlp_dim": 64,
}  # fmt: skip


def release(folder):
    """A hub cache in which a small model of the golden files is microsoft/STELLAR's stellar-b16."""
    repository = folder / "models--microsoft--STELLAR"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    entry = json.loads((GOLDEN / "config.json").read_text())["models"]["vq_p16"]
    manifest = {"models": {"stellar-b16": entry | {"weights": "stellar-b16.safetensors"}}}
    (snapshot / "config.json").write_text(json.dumps(manifest))
    shutil.copyfile(GOLDEN / "vq_p16.safetensors", snapshot / "stellar-b16.safetensors")
    shutil.copyfile(GOLDEN / "vq_p16.vqgan.safetensors", snapshot / "vq_p16.vqgan.safetensors")


def networks(folder):
    """Files of random Inception and LPIPS networks; their settings."""
    inception = TorchInception(0)
    with torch.no_grad():
        inception(np.zeros((1, 8, 8, 3), np.uint8))  # draws the weights
    state = {name: torch.as_tensor(value) for name, value in inception.state.items()}
    torch.save(state, folder / "inception.pth")
    files = {"eval.inception": folder / "inception.pth"}
    for name, tensors in zip(("alexnet", "heads"), random_files(0), strict=True):
        torch.save({k: torch.from_numpy(v) for k, v in tensors.items()}, folder / f"{name}.pth")
        files[f"eval.lpips.{name}"] = folder / f"{name}.pth"
    return files


# One test, because preparing all that takes longer than each part of it.
def test_every_step_runs_and_the_exit_status_says_whether_the_figures_are_met(tmp_path):
    prepare(tmp_path / "tfds")
    release(tmp_path / "hub")
    given = TINY | networks(tmp_path) | {
        "data.path": tmp_path / "tfds", "model.tokenizer.path": GOLDEN / "vq_p16.vqgan.safetensors",
    }  # fmt: skip
    env = environment() | {"HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}

    def call(**changed):
        arguments = [f"--config.{name}={value}" for name, value in (given | changed).items()]
        command = ["main.py", "--config=configs/reproduce_b16.py", "--mode=evaluate", *arguments]
        return subprocess.run(
            [sys.executable, *command, f"--workdir={tmp_path / 'run'}"],
            cwd=ROOT, env=env, capture_output=True, text=True, timeout=WAIT,
        )  # fmt: skip

    first = call()
    assert first.returncode == 1, first.stdout + first.stderr
    assert first.stderr.splitlines()[-1].startswith("4 of 4 expected figures are not met: knn mean_S k20 is ")
    table = first.stdout.split("## published figures")[1].splitlines()
    assert [row.split("|")[5].strip() for row in table[4:8]] == ["missed"] * 4
    assert [row.split("|")[3].strip() for row in table[4:8]] == ["0.6725", "0.7326", "3.06", "0.2077"]
    assert (tmp_path / "run" / "evaluation.md").read_text().count(" missed |") == 4

    assert not (tmp_path / "run" / "checkpoints").exists()  # nothing was trained
    results = Results(tmp_path / "run")
    expected = tuple(
        (task, of, metric, results.metrics("trained", task)[of][metric], 1e-6)
        for task, of, metric in (
            ("knn", "mean_S", "k20"), ("linear_published", "mean_S", "accuracy"),
            ("reconstruction_probe", "Z, random crops", "rfid"),
            ("reconstruction_probe", "Z, random crops", "lpips"),
        )
    )  # fmt: skip
    entry = results.encoders["trained"]["reconstruction_probe"]
    # As released in everything but what TINY changes.
    departures = {
        name for task in ("linear_published", "reconstruction_probe")
        for name in results.encoders["trained"][task]["settings"]["protocol"]["departures"]
    }  # fmt: skip
    assert departures == {"size", "epochs", "batch_size", "width", "layers", "mlp_dim"}
    assert entry["settings"]["data"]["resize"] == "published" and entry["settings"]["dtype"] == "bfloat16"
    assert set(entry["metrics"]) == {"Z, random crops", "Z, centre"}
    assert entry["settings"]["protocol"]["target"] == "vq" and entry["ran"]["from"].startswith("hf://")
    assert entry["settings"]["protocol"]["tokenizer"]["file"] == "vq_p16.vqgan.safetensors"
    assert set(entry["settings"]["networks"]) >= {"inception", "lpips.alexnet", "lpips.heads"}
    second = call(**{"eval.expected": expected})
    assert second.returncode == 0, second.stdout + second.stderr
    assert second.stdout.count("was measured before") == 3 and "evaluating" not in second.stdout
    assert second.stdout.count(" met |") == 4


@pytest.mark.fast
def test_verdicts(tmp_path):
    results = Results(tmp_path)
    results.add("trained", "knn", {}, Result({"mean_S": {"k20": 0.5, "k10": float("nan")}}), {})
    rows = [
        ("knn", "mean_S", "k20", 0.52, 0.021), ("knn", "mean_S", "k20", 0.48, 0.021),
        ("knn", "mean_S", "k20", 0.52, 0.019), ("knn", "mean_S", "k20", 0.48, 0.019),
        ("knn", "mean_S", "k10", 0.5, 9), ("knn", "cls", "k20", 0.5, 9),
    ]  # fmt: skip
    table, missed = results.verdict("trained", rows)
    verdicts = [line.split("|")[5].strip() for line in table.splitlines()[5:]]
    assert verdicts == ["met", "met", "missed", "missed", "absent", "absent"]
    assert missed == ["knn mean_S k20 is 0.5"] * 2 + ["knn mean_S k10 is absent", "knn cls k20 is absent"]
