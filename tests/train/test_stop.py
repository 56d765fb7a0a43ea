"""SIGTERM and Ctrl-C, where nothing has to be saved and where something has."""

import signal
import subprocess
import sys

import pytest

from sparse_vis.runtime.errors import command_line
from sparse_vis.train.stop import StopSignal

PROGRAM = """
import os, signal, sys
from sparse_vis.train.stop import StopSignal
number, keep = int(sys.argv[1]), sys.argv[2] == "True"
with StopSignal(*map(int, sys.argv[4:])) as stop:
    stop.keep = keep
    os.kill(os.getpid(), number)
    print("the step ends", stop.received, flush=True)
    if sys.argv[3] == "again":
        os.kill(os.getpid(), number)
        print("still here", flush=True)
    stop.end()
print("end of the program")
"""


def outcome(number, keep, again="", *status):
    """Exit status and output of a program that sends itself a signal."""
    command = [sys.executable, "-c", PROGRAM, str(int(number)), str(keep), again, *status]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.fast
def test_a_signal_ends_the_process_where_nothing_would_be_lost():
    left = "before the first step: there was nothing to save; repeat the command to start again.\n"
    assert outcome(signal.SIGTERM, keep=False) == (0, f"SIGTERM {left}", "")
    # As a process that Ctrl-C has ended: else a shell would go on with the next run of its loop.
    assert outcome(signal.SIGINT, keep=False) == (-signal.SIGINT, f"Ctrl-C {left}", "")


@pytest.mark.fast
def test_a_signal_lets_the_step_end_and_a_second_ctrl_c_does_not():
    assert outcome(signal.SIGTERM, keep=True) == (0, "the step ends True\nend of the program\n", "")
    again = outcome(signal.SIGTERM, keep=True, again="again")
    assert again == (0, "the step ends True\nstill here\nend of the program\n", "")
    status, out, error = outcome(signal.SIGINT, keep=True)
    assert (status, out) == (-signal.SIGINT, "the step ends True\n")
    assert error == "\nCtrl-C: saving after this step; another Ctrl-C ends without that\n"
    assert outcome(signal.SIGINT, keep=True, again="again")[:2] == (-signal.SIGINT, "the step ends True\n")


@pytest.mark.fast
def test_a_status_tells_a_stopped_run_from_a_finished_one():
    assert outcome(signal.SIGTERM, True, "", "75")[:2] == (75, "the step ends True\n")
    assert outcome(signal.SIGTERM, False, "", "75")[0] == 75
    assert outcome(signal.SIGINT, True, "", "75")[0] == -signal.SIGINT


@pytest.mark.fast
def test_handlers_are_those_of_before_afterwards():
    """Programs that call main.py's parts in their own process keep their own Ctrl-C."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(ValueError, match="inside"), StopSignal() as stop:
        assert signal.getsignal(signal.SIGINT) == signal.getsignal(signal.SIGTERM) == stop._handle
        raise ValueError("inside")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.fast
def test_ctrl_c_ends_a_tool_with_one_word(capsys):
    def tool():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as end:
        command_line(tool)
    assert end.value.code == 130 and capsys.readouterr() == ("", "interrupted\n")
