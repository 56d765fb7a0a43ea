"""The commands of the docs run as they stand there, in a folder where models and images are tiny.

Names of the docs (`runs/quickstart`, `photos`, FOLDER, FILE, …) exist in that folder. To a command of main.py
are added settings that make it small; commands that are the same then run once.
"""

from __future__ import annotations

import ast
import json
import pathlib
import runpy
import shutil

import numpy as np
import pytest
from PIL import Image

from sparse_vis.commands.pack import pack
from tests import tiny_checkpoint
from tests.documents import ROOT, Command, commands, pages
from tests.forks import Forks
from tests.main_process import environment
from tests.small import SMALL, UNLESS_GIVEN

TOOLS = ("extract", "probe", "reconstruct", "report", "export", "pack")
VQGAN = "tests/golden/vq_p16.vqgan.safetensors"  # of 128 codes

# For configs/imagenet_*.py, in place of ImageNet and MAE, which are far away.
FAR = {"init": "", "data.source": "scenes", "data.split": "train"}
TOKENIZER = {"model.tokenizer.path": VQGAN, "model.tokenizer.codes": 128}
# Names of the docs that mean the same here, and names of results, which make no difference.
SAME = {"photos": "FOLDER", "images/train": "FOLDER", "runs/photos": "runs/quickstart"}
SAME |= {"runs/scenes_tiny": "runs/quickstart"}
SAME |= {"configs/scenes_tiny.py": "configs/quickstart.py"}  # but for settings of SMALL and the name

# Workdirs that are there, with their configurations and steps.
WORKDIRS = (
    ("quickstart", "quickstart.py", 3), ("other", "quickstart.py", 4), ("scenes_tiny", "scenes_tiny.py", 3),
    ("photos", "folder.py", 3), ("uncentred", "digits.py", 1000, 2000),
    ("pictures_tiny", "pictures_tiny.py", 3), ("fashion", "fashion.py", 3),
)  # fmt: skip

# Commands that do not run here, and why. Exact: what runs or is no longer documented must not be listed.
ELSEWHERE = {
    "docs/pods.md: python main.py --distributed=HOST:PORT,PROCESSES,PROCESS": (
        "needs other processes: tests/train/test_elastic.py"
    ),
    "docs/extraction.md: python -m sparse_vis extract --distributed=HOST:PORT,PROCESSES,PROCESS": (
        "needs other processes: tests/commands/test_extract.py"
    ),
    "docs/faq.md: python main.py --config=configs/reproduce_b16.py --mode=evaluate": (
        "needs ImageNet, a release and three networks: tests/evals/test_reproduce.py makes tiny ones"
    ),
}


def flags(words) -> dict[str, str]:
    """--NAME=VALUE -> {NAME: VALUE}; "" for one without a value."""
    return {name[2:]: value for name, _, value in (word.partition("=") for word in words)}


def documented() -> list[Command]:
    """All commands of the programs that this file is about."""
    programs = (("main.py",), *(("-m", "sparse_vis", tool) for tool in TOOLS))
    found = (command for page in pages() for command in commands(page))
    return [
        command
        for command in found
        if command.words[0] == "python" and any(command.words[1 : 1 + len(p)] == p for p in programs)
    ]


def listed(command: Command) -> str | None:
    """The entry of ELSEWHERE that the command is."""
    return next((entry for entry in ELSEWHERE if str(command).startswith(entry)), None)


def small(command: Command) -> tuple[str, ...]:
    """What follows `python`: the command, and settings that make it small."""
    if command.words[1] == "-m":
        return command.words[1:]
    given, added = flags(command.words[2:]), dict(SMALL)
    far = given["config"].startswith("configs/imagenet")
    unless = UNLESS_GIVEN | (FAR if far else {})
    added |= {name: value for name, value in unless.items() if f"config.{name}" not in given}
    if far and given.get("config.model.target") != "pixel":
        added |= TOKENIZER
    return (*command.words[1:], *(f"--config.{name}={value}" for name, value in added.items()))


def effect(words: tuple[str, ...]) -> tuple:
    """The same for command lines that do the same here: the last value of each flag counts."""
    first = 3 if words[0] == "-m" else 1
    given = flags(words[first:])
    if given.get("mode") != "evaluate":
        given.pop("workdir", None)
    if "output" in given:
        given["output"] = ""
    if given.get("config.data.source") == "scenes":
        given.pop("config.data.path", None)
    return (*words[:first], *sorted((name, SAME.get(value, value)) for name, value in given.items()))


def runs() -> dict[str, tuple[str, ...]]:
    """Name -> command line, one for each effect."""
    found = {}
    for command in documented():
        if not listed(command):
            words = small(command)
            found.setdefault(effect(words), (str(command), words))
    return dict(found.values())


RUNS = runs()


def write_run(workdir: pathlib.Path, config_file: str, *steps: int) -> None:
    """Checkpoints of a configuration made small, as if it had been trained."""
    config = runpy.run_path(ROOT / "configs" / config_file)["get_config"]()
    config.update_from_flattened_dict(SMALL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny_checkpoint, "tiny_config", lambda: config)
        tiny_checkpoint.write_checkpoints(workdir, {step: step for step in steps})


def write_pictures(folder: pathlib.Path) -> None:
    """A data set of the form of docs/pictures.md."""
    for kind, name, mode in (("objects", "food/a.png", "RGBA"), ("photographs", "a.jpg", "RGB")):
        for split in ("train", "validation", "test"):
            file = folder / kind / split / name
            file.parent.mkdir(parents=True)
            Image.new(mode, (40, 40), "red").save(file)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder with all that the docs' commands read."""
    folder = tmp_path_factory.mktemp("prepared")
    for name in ("main.py", "configs", "tests", "docs"):
        (folder / name).symlink_to(ROOT / name)
    draw = np.random.default_rng(0)
    for i in range(40):
        file = folder / "photos" / f"class{i % 2}" / f"{i:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (36, 40, 3), np.uint8)).save(file)
    listed = (file.relative_to(folder) for file in sorted((folder / "photos").rglob("*.png")))
    rows = [f"{file},{file.parent.name}\n" for file in listed]
    (folder / "photos.csv").write_text("".join(["path,label\n", *rows]))
    for name in ("images", "notebooks"):
        (folder / name).mkdir()
    for name in ("FOLDER", "images/train", "notebooks/images"):
        (folder / name).symlink_to(folder / "photos")
    (folder / "data/fashion").mkdir(parents=True)
    (folder / "data/fashion/train").symlink_to(folder / "photos")
    write_pictures(folder / "data/pictures")
    (folder / "packed").mkdir()
    pack(
        images=str(folder / "photos"), output=folder / "packed/train", shard_size=40, threads=1,
        on_error="stop",
    )  # fmt: skip
    for name, config, *steps in WORKDIRS:
        write_run(folder / "runs" / name, config, *steps)
    return folder


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    """Runs commands, without network."""
    folder = tmp_path_factory.mktemp("environment")
    with Forks(environment() | {"HF_HUB_OFFLINE": "1"}, folder / "log") as forks:
        yield forks


def made(given: dict[str, str], folder: pathlib.Path) -> list[pathlib.Path]:
    """The files that the command is for."""
    if "output" in given:
        output = folder / given["output"]
        return [output] if output.suffix else [path for path in output.rglob("*") if path.is_file()]
    if "checkpoint" in given:
        return [folder / given["checkpoint"] / "probe.safetensors"]
    name = pathlib.Path(given["config"]).stem.removesuffix("_config")
    workdir = folder / given.get("workdir", f"runs/{name}")
    if given.get("mode") == "evaluate":
        return [workdir / "evaluation.json"]
    return [workdir / "metrics.jsonl", workdir / "checkpoints" / "1"]


@pytest.mark.parametrize("name", RUNS, ids=lambda name: name[:90])
def test_a_command_runs(name, prepared, forks, tmp_path):
    words = RUNS[name]
    given = flags(words[3 if words[0] == "-m" else 1 :])
    trains = words[0] == "main.py" and given.get("mode") != "evaluate"
    for path in prepared.iterdir():  # all but what is to be made
        if path.name not in ("runs", given.get("output", "").partition("/")[0]):
            (tmp_path / path.name).symlink_to(path)
    shutil.copytree(prepared / "runs", tmp_path / "runs")
    if trains:
        shutil.rmtree(made(given, tmp_path)[0].parent, ignore_errors=True)
    status, output = forks.run(words, tmp_path)
    assert status == 0, f"{name}\n{output}"
    files = made(given, tmp_path)
    assert files and all(path.exists() for path in files), f"{name}\n{output}"
    if trains:
        assert json.loads(files[0].read_text().splitlines()[0])["step"] == 1
    if given.get("mode") == "evaluate":
        tasks = {task for found in json.loads(files[0].read_text())["encoders"].values() for task in found}
        assert tasks == set(ast.literal_eval(given["config.eval.tasks"]))


def test_every_command_runs_here_or_is_listed():
    """What is listed is documented and only that."""
    entries = [listed(command) for command in documented()]
    assert {entry for entry in entries if entry} == set(ELSEWHERE)
    assert len(RUNS) > 20 and {words[2] for words in RUNS.values()} >= set(TOOLS)
