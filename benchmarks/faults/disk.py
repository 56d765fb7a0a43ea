"""A disk that is full at some byte of whatever a command writes.

The command must end with status 1 and one sentence, and given space and started again, end as if nothing had
happened. Needs root, to mount a small file system in memory.
"""

from __future__ import annotations

import contextlib
import pathlib
import random
import shutil
import subprocess
from collections.abc import Iterator

from benchmarks.faults.commands import Command, commands
from benchmarks.faults.process import finish, start
from benchmarks.faults.tally import Tally

LARGE = 1 << 30


def resize(place: pathlib.Path, size: int) -> None:
    """Give a mounted file system another size in bytes."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(place)], check=True)


@contextlib.contextmanager
def mounted(place: pathlib.Path) -> Iterator[None]:
    """An empty file system in memory, while the context lasts."""
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={LARGE}", "tmpfs", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


def try_full(command: Command, place: pathlib.Path, size: int, log: pathlib.Path) -> tuple[int, str, str]:
    """Run a command on a disk of some bytes, then again on a large one.

    Returns:
        (status of the first, what it printed, what is wrong with the second or "").
    """
    resize(place, size)
    status = start(command.program, command.arguments, log).wait()
    resize(place, LARGE)
    try:
        if status:
            finish(command.program, command.arguments)
    except RuntimeError as error:
        return status, log.read_text(), f"given space it {error}"
    return status, log.read_text(), ""


def campaign(folder: pathlib.Path, tally: Tally, scale: float, seed: int) -> None:
    """Every command that writes, on disks of random sizes below what it needs.

    Args:
        folder: for all that is written. tally: gets the trials. scale: of their number. seed: of the sizes.
    """
    chance, place, log = random.Random(seed), folder / "disk", folder / "full.log"
    for command in commands(folder, place / "out"):
        with mounted(place):
            command.prepare(command.out)
            least = shutil.disk_usage(place).used
            finish(command.program, command.arguments)
            expected, most = command.contents(command.out), shutil.disk_usage(place).used
        for _ in range(max(1, round(5 * scale))):
            with mounted(place):
                command.prepare(command.out)
                size = least + max(4096, int((most - least) * chance.uniform(0, 0.95)))
                status, text, wrong = try_full(command, place, size, log)
                same = wrong or command.contents(command.out) == expected
            if not same:
                wrong = "what is written in the end is not what one alone writes"
            if status and (status != 1 or "Traceback" in text):
                wrong = f"status {status}: {text[-600:]}"
            tally.count(f"disk full, {command.name}", bool(status), f"{size} bytes: {wrong}" if wrong else "")
