"""The campaign of faults: its parts that need no processes, its judgement, and the command."""

from __future__ import annotations

import json
import random
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.faults import foreign
from benchmarks.faults.kills import ROOT, differences
from benchmarks.faults.tally import Part, Tally
from sparse_vis.runtime.errors import UserError


def refuse():
    raise UserError("this file is damaged; restore it.")


@pytest.mark.fast
def test_each_outcome_has_its_column():
    tally = Tally()
    for read in (refuse, lambda: 3, lambda: 4, lambda: {}["no key"]):
        tally.judge("files", "a bit", read, lambda found: found == 3)
    tally.refuse("files", "two lines", "one\ntwo")
    tally.add("kills", tried=5, wrong=[])
    tally.count("disks", refused=True, wrong="")
    assert tally.table().splitlines()[2:] == [
        "| files | 5 | 1 | 1 | 3 |", "| kills | 5 | 0 | 5 | 0 |", "| disks | 1 | 1 | 0 | 0 |",
        "| all | 11 | 2 | 6 | 3 |",
    ]  # fmt: skip


@pytest.mark.fast
def test_two_runs_differ_in_an_array_or_a_row():
    one = {"w": [1.0, 2.0]}, [{"step": 1, "total": 3.0}, {"step": 2, "total": 2.0}]
    assert differences(one, one) == []
    assert differences(({"w": [1.0, 2.5]}, one[1]), one) == ["w"]
    assert differences(({}, one[1]), one) == ["w"]
    assert differences((one[0], one[1][:1]), one) == ["metrics have rows of steps [1], expected [1, 2]"]
    assert differences((one[0], [one[1][0], {"step": 2, "total": 9.0}]), one) == ["row 2"]


@pytest.mark.fast
def test_a_decoder_that_is_not_pillows_would_be_noticed(monkeypatch, tmp_path):
    monkeypatch.setattr(foreign, "decode", lambda record: np.zeros((31, 17, 3), np.uint8))
    tally = Tally()
    foreign.pictures(Part(tmp_path, tally, random.Random(0), scale=0.1))
    assert tally.total().tried == 30 and tally.total().wrong


def test_the_command_finds_nothing_wrong(tmp_path):
    """A part of a hundred of all that needs no processes of its own."""
    command = [sys.executable, "-m", "benchmarks.faults", "--only=flips,pictures,malformed,hostile"]
    done = subprocess.run(
        [*command, "--scale=0.05", f"--json={tmp_path}/faults.json"],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "faults.json").read_text())["faults"]
    assert len(found) == 23 and not any(row["wrong"] for row in found.values())
    assert sum(row["refused"] for row in found.values()) > 50
