"""One uninterrupted run that the tests of this folder compare with, resume, copy and damage."""

import pytest
from main_process import TINY, Main, environment


@pytest.fixture(scope="session")
def quick(tmp_path_factory):
    """Environment of cheap processes that share what they compile."""
    return environment(tmp_path_factory.mktemp("quick"))


@pytest.fixture
def main(quick, tmp_path):
    """Starts main.py; its output goes to a file of the test's folder."""

    def start(*arguments):
        count = len(list(tmp_path.glob("*.log")))
        return Main(quick, tmp_path / f"{count}.log", *arguments)

    return start


@pytest.fixture(scope="session")
def finished(quick, tmp_path_factory):
    """Workdir of an uninterrupted run of the tiny configuration."""
    folder = tmp_path_factory.mktemp("finished")
    with Main(quick, folder / "run.log", f"--config={TINY}", f"--workdir={folder / 'run'}") as run:
        assert run.end() == 0, run.output
    return folder / "run"
