"""Run every command that writes twice at a time in one folder, and on a full disk.

Of two at a time, the second must be refused, and the first must go on undisturbed. On a full disk, the
command must end with status 1 and one sentence; given space and started again, it must end as if nothing had
happened.
"""

import contextlib
import json
import pathlib
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.faults import kills
from benchmarks.faults.flips import picture_folder
from benchmarks.faults.tally import Part

LARGE = 1 << 30


@dataclass(frozen=True)
class Command:
    """A command that writes a folder."""

    name: str  # for the table
    words: list[str]  # what follows `python`
    contents: Callable[[pathlib.Path], Any]  # folder -> what was written there, always equal if undisturbed
    prepare: Callable[[pathlib.Path], Any] = lambda out: None  # writes what the command needs in the folder


def files(pattern: str) -> Callable[[pathlib.Path], dict[str, bytes]]:
    """A function from a folder to its files: name -> bytes."""
    return lambda out: {path.name: path.read_bytes() for path in sorted(out.glob(pattern))}


def metrics(out: pathlib.Path) -> dict:
    """The metrics of evaluation.json."""
    tasks = json.loads((out / "evaluation.json").read_text())["encoders"]["trained"]
    return {name: task["metrics"] for name, task in tasks.items()}


def commands(folder: pathlib.Path, out: pathlib.Path) -> list[Command]:
    """All commands, writing to `out`, for a trained run and a folder of images that `folder` receives."""
    run, images = kills.calm(folder), picture_folder(folder / "images", 60)
    checkpoint, given, output = f"--checkpoint={run}", f"--input={images}", f"--output={out}"
    tool = ["-m", "sparse_vis"]
    evaluate = ["main.py", f"--config={kills.TINY}", f"--workdir={out}", "--mode=evaluate"]
    return [
        Command("training", kills.run_words(out, 0), kills.final),
        Command("evaluation", [*evaluate, "--config.eval.tasks=('knn',)"], metrics,
                lambda out: shutil.copytree(run, out, dirs_exist_ok=True)),
        Command("extraction", [*tool, "extract", checkpoint, given, output, "--shard-size=4", "--batch=4"],
                files("*.parquet")),
        Command("packing", [*tool, "pack", given, output, "--shard-size=4"], files("*")),
        Command("export", [*tool, "export", checkpoint, output], files("*")),
        Command("reconstruction", [*tool, "reconstruct", checkpoint, given, output], files("**/*.png")),
        Command("report", [*tool, "report", checkpoint, f"--images={images}", f"{output}/page.html"],
                files("*"), lambda out: out.mkdir(exist_ok=True)),
    ]  # fmt: skip


def holds_a_lock(pid: int) -> bool:
    """Whether a process holds a POSIX record lock, from the kernel's list, which disturbs no process."""
    lines = pathlib.Path("/proc/locks").read_text().splitlines()
    return any("POSIX" in line and str(pid) in line.split() for line in lines)


def begun(command: Command, log: pathlib.Path) -> subprocess.Popen:
    """Start a command, and return when it has locked its folder or has ended."""
    process = kills.start(command.words, log)
    while process.poll() is None and not holds_a_lock(process.pid):
        time.sleep(0.001)
    return process


def both(command: Command, delay: float, logs: list[pathlib.Path]) -> str:
    """Start a command, stop it `delay` seconds after it has locked the folder, and start it a second time.

    Returns what is wrong, or "" if the second was refused in a sentence with the process id of the first.
    """
    first = begun(command, logs[0])
    time.sleep(delay)
    first.send_signal(signal.SIGSTOP)
    overlapped = first.poll() is None and holds_a_lock(first.pid)
    status, text = kills.start(command.words, logs[1]).wait(), logs[1].read_text()
    first.send_signal(signal.SIGCONT)
    if first.wait():
        return f"the first ended with status {first.returncode}: {logs[0].read_text()[-300:]}"
    if not overlapped:
        return f"the first had ended after {delay:.2f} s, so nothing was tried"
    error = (text.strip().splitlines() or [""])[-1]
    named = error.startswith("error: ") and f"process {first.pid} " in error and "Traceback" not in text
    return "" if status == 1 and named else f"the second ended with status {status}: {text[-400:]!r}"


def two_at_a_time(part: Part) -> None:
    """Each command three times, with a second one started at a random moment of its first quarter."""
    out, logs = part.folder / "out", [part.folder / "first.log", part.folder / "second.log"]
    for command in commands(part.folder, out):
        shutil.rmtree(out, ignore_errors=True)
        command.prepare(out)
        process, since = begun(command, logs[0]), time.monotonic()
        kills.check(process, logs[0])
        seconds, expected = time.monotonic() - since, command.contents(out)
        for _ in part.times(3):
            shutil.rmtree(out, ignore_errors=True)
            command.prepare(out)
            wrong = both(command, part.chance.uniform(0, seconds / 4), logs)
            if not wrong and command.contents(out) != expected:
                wrong = "the first writes something else than alone"
            part.tally.count(f"two at a time, {command.name}", refused=True, wrong=wrong)


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


def full_disk(part: Part) -> None:
    """Each command on five disks, of random sizes smaller than it needs."""
    place, log, again = part.folder / "disk", part.folder / "full.log", part.folder / "again.log"
    out = place / "out"
    for command in commands(part.folder, out):
        with mounted(place):
            command.prepare(out)
            least = shutil.disk_usage(place).used
            kills.check(kills.start(command.words, log), log)
            expected, most = command.contents(out), shutil.disk_usage(place).used
        for _ in part.times(5):
            size, wrong = least + max(4096, int((most - least) * part.chance.uniform(0, 0.95))), ""
            with mounted(place):
                command.prepare(out)
                resize(place, size)
                status, text = kills.start(command.words, log).wait(), log.read_text()
                resize(place, LARGE)
                try:
                    if status:
                        kills.check(kills.start(command.words, again), again)
                    if command.contents(out) != expected:
                        wrong = "in the end something else is written than on an empty disk"
                except RuntimeError as error:
                    wrong = f"given space it {error}"
            if status and (status != 1 or "Traceback" in text):
                wrong = f"status {status}: {text[-600:]}"
            wrong = wrong and f"{size} bytes: {wrong}"
            part.tally.count(f"disk full, {command.name}", bool(status), wrong)
