"""launch/local.py with small programs in place of main.py."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from main_process import ROOT, gone

START = """
import importlib.util, os, sys
spec = importlib.util.spec_from_file_location("local", {path!r})
local = importlib.util.module_from_spec(spec)
spec.loader.exec_module(local)
local.MAIN, local.GRACE_SECONDS, local.SAME_SECONDS = {program!r}, 1, 0.5
local.DEVICE_FILES = local.pathlib.Path({program!r}).parent / "dev"
start = local.Processes.__init__
def slow(*arguments):
    start(*arguments)
    local.time.sleep(float(os.environ.get("SLOW_START", 0)))
local.Processes.__init__ = slow
local.main()
"""
HEADER = """
import os, pathlib, signal, sys, time
address, count, index = sys.argv[-1].removeprefix("--distributed=").split(",")
index, folder = int(index), pathlib.Path(sys.argv[1])
"""


@pytest.fixture
def launch(tmp_path):
    """Starts processes of a program, which finds its number in `index` and a folder in `folder`."""
    started = []

    def start(program, processes=2, devices=1, **environment):
        (tmp_path / "program.py").write_text(HEADER + textwrap.dedent(program))
        code = START.format(path=str(ROOT / "launch" / "local.py"), program=str(tmp_path / "program.py"))
        command = [f"--processes={processes}", f"--devices={devices}", "--", str(tmp_path)]
        command = [sys.executable, "-c", code, *command]
        environment = {**os.environ, **environment}
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(subprocess.Popen(command, env=environment, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


@pytest.mark.fast
def test_every_process_gets_its_place_and_devices_and_only_the_first_is_shown(launch, tmp_path):
    program = """
        text = " ".join([address, count, os.environ["XLA_FLAGS"], os.environ["CUDA_VISIBLE_DEVICES"]])
        (folder / f"{index}.txt").write_text(text)
        print("I am", index, sys.argv[2:-1])
    """
    flags = "--xla_force_host_platform_device_count=9 --xla_dump_to=x"
    process = launch(program, processes=3, devices=2, XLA_FLAGS=flags, CUDA_VISIBLE_DEVICES="7,6,5,4,3,2")
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "I am 0 []\n", "")
    texts = [(tmp_path / f"{index}.txt").read_text().split(" ") for index in range(3)]
    assert len({text[0] for text in texts}) == 1 and re.fullmatch(r"127\.0\.0\.1:\d+", texts[0][0])
    shared = ["3", "--xla_dump_to=x", "--xla_force_host_platform_device_count=2"]
    assert [text[1:] for text in texts] == [[*shared, "7,6"], [*shared, "5,4"], [*shared, "3,2"]]


SHOW = """
    (folder / f"{index}.txt").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "unset"))
"""


@pytest.mark.fast
@pytest.mark.parametrize(
    ("found", "given", "platforms", "expected"),
    [
        (["nvidia0", "nvidia1"], None, "", "2 GPUs here (/dev/nvidia*: 0, 1)"),
        (["nvidia0"], "4,GPU-a7", "cuda", "2 GPUs here (CUDA_VISIBLE_DEVICES: 4, GPU-a7)"),
        (["nvidia10", "nvidia0", "nvidia2", "nvidiactl"], None, "", ["0", "2", "10"]),
        (["nvidia0"], None, "cpu", ["0", "", ""]),
        (["nvidia0"], "", "", ["", "", ""]),
        (["nvidia0"], "-1", "", ["-1", "-1", "-1"]),
        ([], None, "", ["0", "1", "2"]),
    ],
)
def test_no_process_is_left_without_a_gpu_where_there_are_some(
    found, given, platforms, expected, launch, tmp_path, monkeypatch
):
    (tmp_path / "dev").mkdir()
    for name in found:
        (tmp_path / "dev" / name).touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    environment = {"JAX_PLATFORMS": platforms} | ({} if given is None else {"CUDA_VISIBLE_DEVICES": given})
    process = launch(SHOW, processes=3, **environment)
    _, err = process.communicate(timeout=20)
    if isinstance(expected, str):
        sentence = expected.replace("/dev/", f"{tmp_path}/dev/")
        assert process.returncode == 1 and not list(tmp_path.glob("*.txt"))
        assert err.startswith(
            f"error: --processes times --devices is 3, but there are {sentence}; give fewer"
        )
        assert "JAX_PLATFORMS=cpu" in err and err.count("\n") == 1
    else:
        assert process.returncode == 0, err
        assert [(tmp_path / f"{index}.txt").read_text() for index in range(3)] == expected


@pytest.mark.fast
@pytest.mark.parametrize(
    "end,how",
    [
        ("sys.exit('error: no data')", "ended with status 1"),
        ("os.kill(os.getpid(), 9)", "was killed by SIGKILL"),
    ],
)
def test_a_process_that_dies_is_named_and_ends_the_others(launch, end, how, tmp_path):
    program = f"""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        (folder / f"{{index}}.pid").write_text(str(os.getpid()))
        while not (folder / "2.pid").exists() or not (folder / "0.pid").exists():
            time.sleep(0.01)
        if index == 1:
            print("last words", flush=True)
            {end}
        print("waiting for ever")
        time.sleep(600)
    """
    process = launch(program, processes=3)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 1 and out == "waiting for ever\n"
    assert "[process 1] last words\n" in err and ("[process 1] error: no data\n" in err) == ("exit" in end)
    assert err.splitlines()[-1] == (
        f"error: process 1 of 3 {how}, so the others were ended too; fix the cause and repeat the "
        "command: it continues from what was saved, if anything was."
    )
    assert gone([int((tmp_path / f"{index}.pid").read_text()) for index in range(3)], seconds=5)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_comes_while_processes_are_started_reaches_them(launch, number, tmp_path):
    program = """
        def stop(*_):
            (folder / f"{index}.stopped").touch()
            sys.exit(0)
        signal.signal(signal.SIGTERM, stop)
        (folder / f"{index}.ready").touch()
        time.sleep(60)
    """
    process = launch(program, SLOW_START="3")
    until(lambda: len(list(tmp_path.glob("*.ready"))) == 2)
    process.send_signal(number)
    until(lambda: len(list(tmp_path.glob("*.stopped"))) == 2)
    assert process.wait(20) == 0


@pytest.mark.fast
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_all_and_a_second_one_kills(launch, number, tmp_path):
    program = """
        def stop(*_):
            (folder / f"{index}.stopped").touch()
            if not (folder / "stubborn").exists():
                sys.exit(0)
        signal.signal(signal.SIGTERM, stop)
        (folder / f"{index}.ready").touch()
        while True:
            time.sleep(0.01)
    """

    def ready_and_signalled():
        process = launch(program)
        until(lambda: len(list(tmp_path.glob("*.ready"))) == 2)
        process.send_signal(number)
        until(lambda: len(list(tmp_path.glob("*.stopped"))) == 2)
        return process

    process = ready_and_signalled()
    assert process.wait(20) == 0 and process.stderr.read() == ""
    for file in [*tmp_path.glob("*.ready"), *tmp_path.glob("*.stopped")]:
        file.unlink()
    (tmp_path / "stubborn").touch()
    process = ready_and_signalled()
    process.send_signal(number)  # at once, as `timeout` does: not meant twice
    time.sleep(0.6)
    assert process.poll() is None
    process.send_signal(number)
    assert process.wait(20) == 1 and "killed by SIGKILL" in process.stderr.read()


@pytest.mark.fast
def test_wrong_arguments_and_help():
    def call(*arguments):
        command = [sys.executable, str(ROOT / "launch" / "local.py"), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=20)

    for arguments, sentence in (
        (["--processes=0"], "--processes and --devices must be at least 1."),
        (["--processes=2", "--mod=x", "--workdir=y"],
         "unrecognized arguments: --mod=x --workdir=y; put -- before what is for main.py."),
        (["--processes=two"], "argument --processes: invalid int value: 'two'; see --help."),
        ([], "the following arguments are required: --processes; see --help."),
    ):  # fmt: skip
        done = call(*arguments)
        assert (done.returncode, done.stderr) == (1, f"error: {sentence}\n")
    shown = call("--help")
    assert shown.returncode == 0 and "--devices=2      of each" in shown.stdout
    assert "python launch/local.py --processes=2 --devices=2 -- --config=" in shown.stdout
