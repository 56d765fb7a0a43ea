"""One uninterrupted run that the tests of this folder compare with, resume, copy and damage."""

import fcntl
import os

import pytest
from main_process import TINY, Main, environment


@pytest.fixture(scope="session")
def quick():
    """Environment of cheap processes that share what they compile."""
    return environment()


@pytest.fixture
def main(quick, tmp_path):
    """Starts main.py; its output goes to a file of the test's folder."""

    def start(*arguments):
        count = len(list(tmp_path.glob("*.log")))
        return Main(quick, tmp_path / f"{count}.log", *arguments)

    return start


@pytest.fixture(scope="session")
def finished(quick, tmp_path_factory):
    """Workdir of an uninterrupted run of the tiny configuration, the same for all of xdist's processes."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "finished"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "ended").exists():
            folder.mkdir(exist_ok=True)
            with Main(quick, folder / "run.log", f"--config={TINY}", f"--workdir={folder / 'run'}") as run:
                assert run.end() == 0, run.output
            (folder / "ended").touch()
    return folder / "run"
