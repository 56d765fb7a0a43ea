"""Two processes that write to one folder: the second must be refused, and the first go on undisturbed."""

from __future__ import annotations

import pathlib
import random
import shutil
import signal
import subprocess
import time

from benchmarks.faults.commands import Command, commands
from benchmarks.faults.process import start
from benchmarks.faults.tally import Tally


def holds_a_lock(pid: int) -> bool:
    """Whether a process holds a POSIX record lock, by the kernel's list: looking disturbs nobody."""
    lines = pathlib.Path("/proc/locks").read_text().splitlines()
    return any("POSIX" in line and str(pid) in line.split() for line in lines)


def begun(command: Command, log: pathlib.Path) -> subprocess.Popen:
    """Start a command, and return when it has locked its folder, or ended."""
    process = start(command.program, command.arguments, log)
    while process.poll() is None and not holds_a_lock(process.pid):
        time.sleep(0.001)
    return process


def seconds_alone(command: Command, log: pathlib.Path) -> float:
    """How long an undisturbed command works once it has locked its folder.

    Raises:
        RuntimeError: it fails, with the end of what it printed.
    """
    process, since = begun(command, log), time.monotonic()
    if process.wait():
        raise RuntimeError(f"ended with status {process.returncode}: {log.read_text()[-500:]}")
    return time.monotonic() - since


def both(command: Command, delay: float, logs: list[pathlib.Path]) -> str:
    """Start a command, and while it stands still in the middle of its work, once more.

    Args:
        command: of `commands`. delay: seconds of work after it has locked the folder. logs: two.

    Returns:
        What is wrong, or "": the second was refused, in a sentence with the first one's process id.
    """
    first = begun(command, logs[0])
    time.sleep(delay)
    first.send_signal(signal.SIGSTOP)
    overlapped = first.poll() is None and holds_a_lock(first.pid)
    status, text = start(command.program, command.arguments, logs[1]).wait(), logs[1].read_text()
    first.send_signal(signal.SIGCONT)
    if first.wait():
        return f"the first ended with status {first.returncode}: {logs[0].read_text()[-300:]}"
    if not overlapped:
        return f"the first was done after {delay:.2f} s: nothing was tried"
    error = (text.strip().splitlines() or [""])[-1]
    named = error.startswith("error: ") and f"process {first.pid} " in error and "Traceback" not in text
    return "" if status == 1 and named else f"the second ended with status {status}: {text[-400:]!r}"


def campaign(folder: pathlib.Path, tally: Tally, scale: float, seed: int) -> None:
    """Each command that writes, twice at a time.

    Args:
        folder: for all that is written. tally: gets the trials. scale: of their number. seed: of the delays.
    """
    chance, out, logs = random.Random(seed), folder / "out", [folder / "first.log", folder / "second.log"]
    for command in commands(folder, out):
        expected = None
        for _ in range(1 + max(1, round(3 * scale))):
            shutil.rmtree(out, ignore_errors=True)
            command.prepare(out)
            if expected is None:  # what one alone writes
                seconds = seconds_alone(command, logs[0])
                expected = command.contents(out)
                continue
            wrong = both(command, chance.uniform(0, seconds / 4), logs)
            if not wrong and command.contents(out) != expected:
                wrong = "what the first writes is not what it writes alone"
            tally.count(f"two at a time, {command.name}", refused=True, wrong=wrong)
