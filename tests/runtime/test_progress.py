"""The line that long work over images shows."""

import io
import sys
import time

import pytest

from sparse_vis.runtime import progress


@pytest.fixture
def clock(monkeypatch):
    """Seconds that progress sees, to be moved by the test."""
    seconds = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: seconds[0])
    return seconds


@pytest.mark.fast
def test_the_rate_leaves_out_the_first_batch_which_compiles(clock, capsys):
    shown = progress.Progress("features", 100)
    for seconds, images in ((60.0, 10), (62.0, 20), (66.0, 10), (68.0, 20)):
        clock[0] = seconds
        shown.add(images)
    first, second = capsys.readouterr().out.splitlines()
    assert first == "features: 10/100 images"  # 60 s of silence end with a line
    assert second == "features: 40/100 images  5.0 images/s  ETA 0:00:12"  # 30 images in 6 s, 60 left


@pytest.mark.fast
def test_work_of_one_batch_has_its_rate(clock, capsys):
    shown = progress.Progress("features", 14, done=10)
    clock[0] = 2.0
    shown.add(4)
    assert capsys.readouterr().out == "features: 14/14 images  2.0 images/s  ETA 0:00:00\n"


class Screen(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.isatty = lambda: terminal


def shown_by(monkeypatch, terminal):
    screen = Screen(terminal)
    monkeypatch.setattr(sys, "stdout", screen)
    progress.update("step 1/9 total 10.5")
    progress.update("step 2/9 total 9")
    progress.say("note: slow")
    progress.update("step 3/9")
    progress.end_line()
    progress.end_line()
    return screen.getvalue()


@pytest.mark.fast
def test_a_line_is_replaced_on_a_terminal_and_in_jupyter_and_notes_stand_below(monkeypatch):
    replaced = "\rstep 1/9 total 10.5\rstep 2/9 total 9   \nnote: slow\n\rstep 3/9\n"
    assert shown_by(monkeypatch, terminal=True) == replaced
    assert (
        shown_by(monkeypatch, terminal=False)
        == "step 1/9 total 10.5\nstep 2/9 total 9\nnote: slow\nstep 3/9\n"
    )
    monkeypatch.setattr(Screen, "__module__", "ipykernel.iostream")
    assert shown_by(monkeypatch, terminal=False) == replaced


@pytest.mark.fast
def test_a_line_is_no_wider_than_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "10")
    monkeypatch.setattr(sys, "stdout", screen := Screen(True))
    progress.update("step 1/9 total 10.5")
    progress.end_line()
    assert screen.getvalue() == "\rstep 1/9 \n"


def test_a_sign_of_life_shows_the_time_until_it_ends(capsys):
    with progress.sign_of_life("still compiling", every=0.05):
        time.sleep(0.4)
    shown = capsys.readouterr().out
    assert shown.count("still compiling: 0 s\n") >= 2
    time.sleep(0.15)
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match="inside"), progress.sign_of_life("still compiling", every=0.05):
        raise ValueError("inside")
    time.sleep(0.15)
    assert capsys.readouterr().out == ""
