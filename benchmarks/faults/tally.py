"""Count the faults that were refused in one sentence, were harmless, or did harm ("wrong")."""

import collections
import contextlib
import io
import pathlib
import random
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from sparse_vis.runtime.errors import UserError

T = TypeVar("T")
LONGEST = 600  # most characters of an error sentence


@dataclass
class Row:
    """Counts of one kind of fault; `wrong` holds a line for each that did harm."""

    refused: int = 0
    harmless: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def tried(self) -> int:
        return self.refused + self.harmless + len(self.wrong)


class Tally:
    """Trials by kind of fault."""

    def __init__(self):
        self.rows: dict[str, Row] = collections.defaultdict(Row)

    def count(self, kind: str, refused: bool, wrong: str) -> None:
        """Count a trial; `wrong` says what went wrong, if anything."""
        if wrong:
            self.fail(kind, wrong)
        elif refused:
            self.rows[kind].refused += 1
        else:
            self.rows[kind].harmless += 1

    def add(self, kind: str, tried: int, wrong: list[str]) -> None:
        """Count trials that are judged together; `wrong` says what went wrong, if anything."""
        self.rows[kind].harmless += tried - bool(wrong)
        if wrong:
            self.fail(kind, "; ".join(wrong[:5]))

    def fail(self, kind: str, what: str) -> None:
        """Count and print a fault that did harm, or whose error was not one sentence."""
        self.rows[kind].wrong.append(what)
        print(f"WRONG: {kind}: {what}", flush=True)

    def judge(self, kind: str, fault: str, read: Callable[[], T], same: Callable[[T], bool]) -> None:
        """Make and count one trial within this process.

        Args:
            kind: of fault. fault: in words. read: uses the damaged input.
            same: whether a result of `read` is that of the undamaged input.
        """
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                found = read()
        except UserError as error:
            self.refuse(kind, fault, str(error))
        except Exception:
            self.fail(kind, f"{fault}: traceback: {traceback.format_exc().strip().splitlines()[-1]}")
        else:
            self.count(kind, False, "" if same(found) else f"{fault}: other results without a message")

    def refuse(self, kind: str, fault: str, sentence: str) -> None:
        """Count a refusal, which must be one line of readable length."""
        readable = len(sentence.splitlines()) == 1 and len(sentence) <= LONGEST
        self.count(kind, True, "" if readable else f"{fault}: not one sentence: {sentence[:200]!r}")

    def table(self) -> str:
        """The counts of each kind, and of all, as a Markdown table."""
        lines = ["| fault | tried | refused | harmless | wrong |", "|---|---|---|---|---|"]
        rows = [*self.rows.items(), ("all", self.total())]
        lines += [f"| {k} | {r.tried} | {r.refused} | {r.harmless} | {len(r.wrong)} |" for k, r in rows]
        return "\n".join(lines)

    def total(self) -> Row:
        """All rows as one."""
        rows = self.rows.values()
        wrong = [line for row in rows for line in row.wrong]
        return Row(sum(r.refused for r in rows), sum(r.harmless for r in rows), wrong)


@dataclass(frozen=True)
class Part:
    """Arguments of a part of the campaign."""

    folder: pathlib.Path  # empty, for all that it writes
    tally: Tally  # counts its trials
    chance: random.Random  # draws all its random numbers
    scale: float  # factor for the number of trials

    def times(self, number: int) -> range:
        """A range of `number` trials, scaled."""
        return range(max(1, round(number * self.scale)))
