"""What a run skips: a count that goes on over restarts, and each image once in skipped.txt."""

import errno
import os

import jax
import pytest

from sparse_vis.runtime.errors import UserError
from sparse_vis.train.log import Skipped

pytestmark = pytest.mark.fast


def test_the_count_goes_on_and_names_are_written_once(tmp_path):
    bad, worse = ("a/1.jpg", "cannot decode 'a/1.jpg'"), ("b 2.jpg", "cannot read 'b 2.jpg'")
    run = Skipped(tmp_path, 0)
    run.add([[bad], [bad, worse]])
    run.add([])
    assert run.report() == 2 and run.report() == 2
    run.add([[bad]])
    assert run.report() == 3
    lines = ["a/1.jpg\tcannot decode 'a/1.jpg'", "b 2.jpg\tcannot read 'b 2.jpg'"]
    assert (tmp_path / "skipped.txt").read_text().splitlines() == lines
    # The run is killed and goes on from the checkpoint that was saved when there were two.
    again = Skipped(tmp_path, 2)
    again.add([[worse], [("c.jpg", "new")]])
    assert again.report() == 4
    assert (tmp_path / "skipped.txt").read_text().splitlines() == [*lines, "c.jpg\tnew"]


def test_odd_names_stay_one_word_of_one_line(tmp_path):
    names = ["Mu\udcf1oz.jpg", "a\tb\nc.jpg", "été\\猫.png"]
    assert os.fsencode(names[0]) == b"Mu\xf1oz.jpg"
    run = Skipped(tmp_path, 0)
    run.add([[(name, "why") for name in names]])
    run.report()
    rows = [line.split("\t") for line in (tmp_path / "skipped.txt").read_text(encoding="utf-8").splitlines()]
    assert rows == [[r"Mu\xf1oz.jpg", "why"], [r"a\x09b\x0ac.jpg", "why"], ["été\\\\猫.png", "why"]]


def test_other_processes_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    run = Skipped(tmp_path, 0)
    run.add([[("a", "why")]])
    run.report()
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_is_one_sentence_and_leaves_whole_lines(tmp_path, monkeypatch):
    run = Skipped(tmp_path, 0)
    run.add([[("a.jpg", "why")]])
    run.report()
    (tmp_path / "skipped.txt").write_bytes(b"a.jpg\twhy\nnot UTF-8: \xf1\n")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    run.add([[("b.jpg", "why")]])
    with pytest.raises(UserError, match=r"skipped.txt cannot be written \(No space left on device\); fix"):
        run.report()
    monkeypatch.undo()
    run.add([[("c.jpg", "why")]])
    run.report()
    left = (tmp_path / "skipped.txt").read_bytes()
    assert left == b"a.jpg\twhy\nnot UTF-8: \xf1\nc.jpg\twhy\n" and len(list(tmp_path.iterdir())) == 1
