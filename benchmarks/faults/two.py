"""Two processes that write to one folder: one must end as if it had been alone, and the other name it."""

from __future__ import annotations

import pathlib
import random
import shutil
import time

from benchmarks.faults.commands import Command, commands
from benchmarks.faults.process import finish, start
from benchmarks.faults.tally import Tally


def both(command: Command, delay: float, logs: list[pathlib.Path]) -> tuple[bool, str]:
    """Start a command twice.

    Args:
        command: of `commands`. delay: seconds between the starts. logs: two.

    Returns:
        (whether one was refused, what is wrong with that or "").
    """
    first = start(command.program, command.arguments, logs[0])
    time.sleep(delay)
    second = start(command.program, command.arguments, logs[1])
    statuses, texts = [first.wait(), second.wait()], [log.read_text() for log in logs]
    if statuses == [0, 0]:  # the second came when the first was done
        return False, ""
    if sorted(statuses) != [0, 1]:
        return False, f"ended with statuses {statuses}: {texts[0][-300:]} / {texts[1][-300:]}"
    winner, text = (first, second)[statuses.index(0)], texts[statuses.index(1)]
    error = (text.strip().splitlines() or [""])[-1]
    right = error.startswith("error: ") and f"process {winner.pid} " in error and "Traceback" not in text
    # An export is refused where there is a finished one.
    return True, "" if right or "already holds" in error else f"the second says {text[-400:]!r}"


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
                begun = time.monotonic()
                finish(command.program, command.arguments)
                expected, seconds = command.contents(out), time.monotonic() - begun
                continue
            refused, wrong = both(command, chance.choice([0, chance.uniform(0, seconds)]), logs)
            if not wrong and command.contents(out) != expected:
                wrong = "what the first writes is not what it writes alone"
            tally.count(f"two at a time, {command.name}", refused, wrong)
