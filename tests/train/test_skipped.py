"""What a run skips: a count that goes on over restarts, and each image once in skipped.txt."""

import json
import os

import pytest

from sparse_vis.train.skipped import Skipped

pytestmark = pytest.mark.fast


def metrics(workdir, *rows):
    (workdir / "metrics.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows) + '{"step": 9, "ski'
    )


def test_the_count_goes_on_and_names_are_written_once(tmp_path):
    bad, worse = ("a/1.jpg", "cannot decode 'a/1.jpg'"), ("b 2.jpg", "cannot read 'b 2.jpg'")
    run = Skipped(tmp_path, 0, main=True)
    run.add([[bad], [bad, worse]])
    run.add([])
    assert run.report() == 2 and run.report() == 2
    run.add([[bad]])
    assert run.report() == 3
    lines = ["a/1.jpg\tcannot decode 'a/1.jpg'", "b 2.jpg\tcannot read 'b 2.jpg'"]
    assert (tmp_path / "skipped.txt").read_text().splitlines() == lines
    # The run is killed and goes on at step 4, whose row says 2; the later one is done again.
    metrics(tmp_path, {"step": 2}, {"step": 4, "skipped": 2.0}, {"step": 6, "skipped": 3.0})
    again = Skipped(tmp_path, 4, main=True)
    again.add([[worse], [("c.jpg", "new")]])
    assert again.report() == 4
    assert (tmp_path / "skipped.txt").read_text().splitlines() == [*lines, "c.jpg\tnew"]


def test_an_earlier_versions_count_goes_on(tmp_path):
    metrics(tmp_path, {"step": 4, "substituted": 5.0})
    assert Skipped(tmp_path, 4, main=True).report() == 5


def test_odd_names_stay_one_word_of_one_line(tmp_path):
    names = ["Mu\udcf1oz.jpg", "a\tb\nc.jpg", "été\\猫.png"]
    assert os.fsencode(names[0]) == b"Mu\xf1oz.jpg"
    run = Skipped(tmp_path, 0, main=True)
    run.add([[(name, "why") for name in names]])
    run.report()
    rows = [line.split("\t") for line in (tmp_path / "skipped.txt").read_text(encoding="utf-8").splitlines()]
    assert rows == [[r"Mu\udcf1oz.jpg", "why"], [r"a\tb\nc.jpg", "why"], ["été\\\\猫.png", "why"]]


def test_other_processes_write_nothing(tmp_path):
    run = Skipped(tmp_path, 0, main=False)
    run.add([[("a", "why")]])
    run.report()
    assert list(tmp_path.iterdir()) == []
