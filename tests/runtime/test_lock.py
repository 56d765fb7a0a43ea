"""One writer per folder: who comes second is told who is first, and the dead block nobody."""

import contextlib
import errno
import importlib
import os
import signal
import socket
import subprocess
import sys

import pytest
from main_process import ROOT, gone

from sparse_vis.runtime import lock
from sparse_vis.runtime.errors import UserError

# Holds a folder until stdin ends, and has a child that inherits whatever is inherited, as data workers do.
HOLD = """
import os, pathlib, sys, time
from sparse_vis.runtime.lock import hold
with hold(pathlib.Path(sys.argv[1]), "training", "--workdir"):
    for number in map(int, os.listdir("/proc/self/fd")):
        try:
            os.set_inheritable(number, True)
        except OSError:
            pass
    child = os.fork()
    if not child:
        time.sleep(600)
    print(child, flush=True)
    sys.stdin.read()
    os.kill(child, 9)
"""


@contextlib.contextmanager
def another_process(folder):
    """A process that holds a folder: (the process, the id of its child)."""
    command = [sys.executable, "-c", HOLD, str(folder)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    process = subprocess.Popen(command, cwd=ROOT, **pipes)
    child = int(process.stdout.readline())
    try:
        yield process, child
    finally:
        process.stdin.close()
        process.wait(20)
        gone([child], seconds=0)


@pytest.mark.fast
def test_the_second_process_is_told_who_is_the_first_until_that_one_is_dead(tmp_path):
    folder = tmp_path / "run"
    with another_process(folder) as (first, child):
        for _ in range(2):  # asking takes nothing away
            with pytest.raises(UserError) as refused, lock.hold(folder, "training", "--workdir"):
                pass
            expected = (
                rf"{folder} is in use \(training, process {first.pid} on {socket.gethostname()}, since 20"
            )
            assert refused.match(expected) and refused.match("or give another --workdir")
        with lock.hold(folder, "evaluation", name=lock.EVALUATION_LOCK):
            pass
        first.send_signal(signal.SIGKILL)
        first.wait()
        os.kill(child, 0)  # alive, with all the descriptors
        assert (folder / lock.LOCK).exists()
        with lock.hold(folder, "training"):
            assert f"process {os.getpid()} " in (folder / lock.LOCK).read_text()


@pytest.mark.fast
def test_a_process_cannot_hold_a_folder_twice_nor_lose_it_by_trying(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "run")
    with lock.hold(tmp_path / "run", "packing"):
        with (
            pytest.raises(UserError, match=r"in use \(this process\)"),
            lock.hold(tmp_path / "link", "packing"),
        ):
            pass
        # Another process still finds it held.
        code = HOLD.split("    for")[0] + "    pass\n"
        second = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "run")], cwd=ROOT, capture_output=True, text=True
        )
        assert f"in use (packing, process {os.getpid()} " in second.stderr
    assert not (tmp_path / "run").exists()  # made by the lock, and nothing written
    with lock.hold(tmp_path / "run", "packing"):
        (tmp_path / "run" / "file").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["file"]


@pytest.mark.fast
def test_a_lock_that_its_holder_removes_meanwhile_is_taken_again(tmp_path, monkeypatch):
    real, path, removed = lock.fcntl.lockf, tmp_path / lock.LOCK, []

    def remove_first(descriptor, operation):
        if not removed:
            removed.append(path.unlink())
        return real(descriptor, operation)

    monkeypatch.setattr(lock.fcntl, "lockf", remove_first)
    with lock.hold(tmp_path, "packing"):
        assert removed and "packing" in path.read_text()


@pytest.mark.fast
def test_a_file_system_without_locks_is_mentioned_and_used(tmp_path, monkeypatch, capsys):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "lockf", none)
    with lock.hold(tmp_path / "run", "training"):
        pass
    assert (
        f"note: the file system of {tmp_path}/run does not support locks (No locks" in capsys.readouterr().out
    )


@pytest.mark.fast
@pytest.mark.parametrize(
    ("tool", "flags"),
    [
        ("commands.extract", ["--checkpoint=absent", "--input=absent"]),
        ("commands.pack", ["--input=absent"]),
        ("commands.export", ["--checkpoint=absent"]),
        ("commands.reconstruct", ["--checkpoint=absent", "--input=docs/images"]),
        ("report.report", ["--checkpoint=absent"]),
    ],
)
def test_a_tool_refuses_an_output_in_use_before_it_reads_a_model(tool, flags, tmp_path, monkeypatch):
    output, folder, name = tmp_path / "out", tmp_path / "out", lock.LOCK
    if "report" in tool:
        folder, name = tmp_path, ".out.lock"
    main = importlib.import_module(f"sparse_vis.{tool}").main
    monkeypatch.setattr(sys, "argv", ["tool", f"--output={output}", *flags])
    monkeypatch.chdir(ROOT)
    with lock.hold(folder, "other", name=name), pytest.raises(UserError, match=f"^{folder} is in use"):
        main()


def test_a_run_refuses_a_workdir_in_use_and_may_be_evaluated_while_it_trains(tmp_path, monkeypatch):
    from sparse_vis.commands.run import run
    from sparse_vis.evals import command
    from sparse_vis.train.stop import StopSignal
    from tests.train.tiny_config import get_config

    config, evaluated = get_config(), []
    config.eval.tasks = ("knn",)
    monkeypatch.setattr(command, "make_plan", lambda config: "plan")
    monkeypatch.setattr(command, "evaluate", lambda *_: evaluated.append(1))
    with lock.hold(tmp_path, "training"):
        before = {path: path.stat().st_mtime_ns for path in [tmp_path, *tmp_path.rglob("*")]}
        with pytest.raises(UserError, match=f"^{tmp_path} is in use .* give another --workdir"):
            run(config, tmp_path, "train", StopSignal())
        assert before == {path: path.stat().st_mtime_ns for path in [tmp_path, *tmp_path.rglob("*")]}
        run(config, tmp_path, "evaluate", StopSignal())
    assert evaluated == [1]
    evaluating = lock.hold(tmp_path, "evaluation", name=lock.EVALUATION_LOCK)
    with evaluating, pytest.raises(UserError, match="in use"):
        run(config, tmp_path, "evaluate", StopSignal())
    assert evaluated == [1]
