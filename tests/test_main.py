"""The command line of main.py: one sentence and a status, never a traceback."""

import subprocess
import sys

import pytest
from main_process import ROOT, TINY

QUICKSTART = "--config=configs/quickstart.py"


def call(*arguments, program=("main.py",)):
    return subprocess.run(
        [sys.executable, *program, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def sentence(*arguments, program=("main.py",)):
    """The error that main.py, or another program, prints."""
    done = call(*arguments, program=program)
    assert done.returncode == 1 and done.stdout == "", done
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    "arguments,culprit,remedy",
    [
        ([QUICKSTART, "--config.train.stepz=3"], "--config.train.stepz", "config.train.steps"),
        ([QUICKSTART, "--config.batch=3"], "--config.batch", "config.train.batch"),
        ([QUICKSTART, "--config.train.steps=many"], "--config.train.steps=many: ", "'many'"),
        ([QUICKSTART, "--config.train=3"], "--config.train=3: ", "not a dict"),
        (["--config=configs/xyz.py"], "configs/xyz.py", "one of digits, "),
        (["--config=configs/quickstar.py"], "configs/quickstar.py", "did you mean configs/quickstart.py?"),
        (["--config=README.md"], "README.md is not Python", "correct it"),
        (["--config=pyproject.toml"], "pyproject.toml is not Python (line", "correct it"),
        (["--config=sparse_vis/build.py"], "build.py defines no get_config", "configs/quickstart.py"),
        (["--config=quickstrat"], "file quickstrat: No such file", "did you mean quickstart?"),
        (["--config.train.steps=3"], "--config.train.steps", "--config=NAME"),
        ([QUICKSTART, "--workdri=x"], "--workdri is not a flag of python main.py", "did you mean --workdir?"),
        ([QUICKSTART, "more"], "'more'", "--name=value"),
        (["--workdir=/nowhere"], "/nowhere holds no config.json", "--config=configs/NAME.py"),
        ([], "give --config=configs/NAME.py", "--workdir"),
    ],
)  # fmt: skip
def test_a_wrong_command_line_is_named_with_its_remedy(arguments, culprit, remedy):
    message = sentence(*arguments)
    assert culprit in message and remedy in message


@pytest.mark.parametrize(
    "arguments,expected",
    [
        (
            ["train", "--workdri=x"],
            "--workdri is not a flag of python -m sparse_vis train; did you mean --workdir?",
        ),
        (
            ["evaluate", QUICKSTART, "--mode=train"],
            "--mode=train is not for the tool evaluate; give it to the tool train.",
        ),
    ],
)
def test_the_tools_train_and_evaluate_are_named_as_they_were_called(arguments, expected):
    assert sentence(*arguments, program=("-m", "sparse_vis")) == f"error: {expected}\n"


@pytest.mark.parametrize(
    "body,culprit",
    [
        ("    config.train.stepz = 3\n", 'line 4: AttributeError: Did you mean "steps" instead of "stepz"?'),
        ("    config.train.steps = int('x')\n", "line 4: ValueError: invalid literal for int()"),
        ("    config = [3]\n", "does not return a ConfigDict"),
    ],
)
def test_a_failing_config_file_is_named_with_its_line(tmp_path, body, culprit):
    path = tmp_path / "mine.py"
    path.write_text(
        "from sparse_vis.config.defaults import default_config\n"
        f"def get_config():\n    config = default_config()\n{body}    return config\n"
    )
    message = sentence(f"--config={path}")
    assert str(path) in message and culprit in message


def test_help_shows_the_flags_and_where_settings_are():
    done = call("--help")
    assert done.returncode == 0 and done.stderr == ""
    for text in (
        "--config=quickstart",
        "--workdir=DIR",
        "sparse_vis/config/defaults.py",
        "python -m sparse_vis --help",
    ):
        assert text in done.stdout
    assert max(map(len, done.stdout.splitlines())) < 120


def test_settings_that_contradict_each_other_and_workdirs_that_cannot_be(tmp_path):
    message = sentence(f"--config={TINY}", "--config.model.patch=7", f"--workdir={tmp_path / 'run'}")
    assert "image_size=24" in message and "patch=7" in message
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").write_text("")
    message = sentence(f"--config={TINY}", f"--workdir={tmp_path / 'file' / 'run'}")
    assert f"cannot write to {tmp_path / 'file' / 'run'}" in message and "another --workdir" in message


def test_main_stays_small():
    assert len((ROOT / "main.py").read_text().splitlines()) <= 60
