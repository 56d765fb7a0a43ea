"""main.py as a real process: started, watched, sent signals."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent
QUICK = ROOT / "tests" / "quick"  # makes Python start with settings that suit short processes
TINY = ROOT / "tests" / "train" / "tiny_config.py"
WAIT = 600  # seconds; for a machine that is busy with other things


def environment() -> dict[str, str]:
    """For main.py as a process: what conftest.py sets is inherited."""
    return {
        **os.environ,
        "PYTHONPATH": f"{ROOT}{os.pathsep}{QUICK}",
        "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES", ""),  # with it, no program starts itself again
    }


class Main:
    """A running main.py; leaving the context kills it."""

    def __init__(self, environment: dict, log: pathlib.Path, *arguments: str):
        self.log = log
        with log.open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "main.py"), *arguments],
                stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=ROOT,
            )  # fmt: skip

    def __enter__(self) -> Main:
        return self

    def __exit__(self, *_) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def output(self) -> str:
        return self.log.read_text()

    def until(self, condition, seconds: float = WAIT) -> None:
        """Wait for a text in the output, or for a function to return something true."""
        deadline = time.monotonic() + seconds
        while not (condition in self.output if isinstance(condition, str) else condition()):
            assert self.process.poll() is None, f"ended before {condition!r}:\n{self.output}"
            assert time.monotonic() < deadline, f"no {condition!r} in {seconds} s:\n{self.output}"
            time.sleep(0.002)

    def end(self, number: int | None = None) -> int:
        """Send a signal, if one is given, wait for the end and return the exit status."""
        if number is not None:
            self.process.send_signal(number)
        return self.process.wait(WAIT)

    def kill(self) -> None:
        """SIGKILL, and be sure that it came before the run's own end."""
        assert self.end(signal.SIGKILL) == -signal.SIGKILL, self.output

    def children(self) -> list[int]:
        """Process ids of the children: the data workers."""
        listed = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True
        )
        return [int(pid) for pid in listed.stdout.split()]


def gone(pids: list[int], seconds: float = 20) -> bool:
    """Whether none of these processes is alive soon; those that are get killed."""
    deadline = time.monotonic() + seconds
    while alive := [pid for pid in pids if _alive(pid)]:
        if time.monotonic() > deadline:
            for pid in alive:
                os.kill(pid, signal.SIGKILL)
            return False
        time.sleep(0.1)
    return True


def _alive(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
