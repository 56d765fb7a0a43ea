"""pip install: the package with its experiments and its command, run from an empty folder."""

import os
import pathlib
import shutil
import subprocess
import sys
import tomllib

import pytest
from main_process import ROOT

from sparse_vis.config.experiments import names


@pytest.mark.fast
def test_every_folder_of_the_package_is_installed():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {p.parent.relative_to(ROOT) for p in (ROOT / "sparse_vis").rglob("*.py")}
    assert {*listed} == {".".join(folder.parts) for folder in folders} | {"sparse_vis.configs"}


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder that pip installed a copy of the repository into; it has bin/sparse-vis."""
    copy, folder = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("installed")
    for name in ("sparse_vis", "configs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "requirements.txt", "README.md"):
        shutil.copy(ROOT / name, copy)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", f"--target={folder}", str(copy)]
    subprocess.run(pip, check=True, capture_output=True, timeout=300)
    return folder


def run(installed, empty, *arguments):
    """Output of the command from an empty folder; what is imported is what was installed."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, str(installed / "bin" / "sparse-vis"), *arguments]
    return subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, timeout=600)


def test_the_command_is_there_and_trains_an_experiment_by_name(installed, tmp_path):
    small = {
        "train.steps": 1, "train.batch": 4, "train.health_every": 0, "model.layers": 1,
        "model.decoder.layers": 1, "model.prototypes.count": 64, "views.global_count": 2,
        "views.local_count": 1, "data.workers": 0, "eval.tasks": "()",
    }  # fmt: skip
    settings = [f"--config.{name}={value}" for name, value in small.items()]
    done = run(installed, tmp_path, "train", "--config=quickstart", *settings)
    assert done.returncode == 0, done.stderr
    assert "step 1/1" in done.stdout and (tmp_path / "runs" / "quickstart" / "checkpoints" / "1").is_dir()
    assert names() == sorted(path.stem for path in (installed / "sparse_vis" / "configs").glob("*.py"))


def test_every_tool_is_listed_and_shows_its_flags(installed, tmp_path):
    shown = run(installed, tmp_path, "--help").stdout
    tools = [line.split()[0] for line in shown.splitlines()[2:]]
    assert " ".join(tools) == "train evaluate extract reconstruct report explore probe export pack"
    done = run(installed, tmp_path, "export", "--outptu=x")
    assert done.returncode == 1
    assert done.stderr == "error: --outptu is not a flag of sparse-vis export; did you mean --output?\n"
    done = run(installed, tmp_path, "exprot")
    assert (
        done.returncode == 1 and "'exprot' is not a tool of sparse-vis; the tools are train," in done.stderr
    )
    assert not list(pathlib.Path(tmp_path).iterdir())
