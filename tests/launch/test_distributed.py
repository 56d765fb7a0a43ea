"""Processes that find each other, lose each other, and leave each other."""

import os
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest
from main_process import ROOT, TINY

from sparse_vis.runtime.errors import UserError
from sparse_vis.train.distributed import _initialize, joined

SCRIPTS = [ROOT / "launch" / name for name in ("slurm.sh", "tpu_pod.sh")]
LOST = """
import os, signal, sys, time
from sparse_vis.train import distributed
distributed.HEARTBEAT_SECONDS = 4
with distributed.joined(sys.argv[1], 0):
    import jax
    print(jax.process_index(), jax.device_count(), flush=True)
    if jax.process_index() == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)
"""
# Takes srun's place: two tasks on this machine, described as Slurm describes them.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
export SLURM_STEP_NODELIST=127.0.0.1 SLURM_NTASKS=2
export JAX_COORDINATOR_BIND_ADDRESS=127.0.0.1:$JAX_COORDINATOR_PORT
for task in 0 1; do SLURM_PROCID=$task SLURM_LOCALID=$task "$@" & tasks[task]=$!; done
for task in 0 1; do wait ${tasks[task]} || status=$?; done
exit ${status:-0}
"""


def port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.mark.parametrize("lost", [0, 1])
def test_a_process_whose_peer_vanishes_ends_soon(lost, tmp_path):
    address = f"127.0.0.1:{port()}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_COORDINATOR_BIND_ADDRESS": address}
    environment["XLA_FLAGS"] = ""
    both = []
    try:
        for index in (0, 1):
            command = [sys.executable, "-c", LOST, f"{address},2,{index}", str(lost)]
            pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            both.append(subprocess.Popen(command, env=environment, **pipes))
        assert both[lost].wait(60) == -signal.SIGKILL
        began = time.monotonic()
        out, err = both[1 - lost].communicate(timeout=30)
        assert both[1 - lost].returncode not in (0, -signal.SIGKILL) and time.monotonic() - began < 20
        assert "another task died" in err or "coordination service" in err.lower()
        assert ("0 2\n" in out) == (lost == 1)  # only process 0 writes to stdout
    finally:
        for process in both:
            process.kill()
            process.wait()


@pytest.mark.fast
def test_a_silent_process_is_taken_for_dead_after_half_a_minute(monkeypatch):
    given = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: given.update(options))
    _initialize("127.0.0.1:4000,2,1")
    place = dict(coordinator_address="127.0.0.1:4000", num_processes=2, process_id=1)
    assert given == place | {"heartbeat_timeout_seconds": 30, "cluster_detection_method": "deactivate"}
    given.clear()
    _initialize("auto")
    assert given == {"heartbeat_timeout_seconds": 30}


@pytest.mark.fast
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_scripts_are_bash(script):
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True, timeout=20)
    assert (done.returncode, done.stderr) == (0, "") and os.access(script, os.X_OK)


def executable(path, text):
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def commands(tmp_path):
    """A folder in front of PATH for commands that are not here."""
    (tmp_path / "bin").mkdir()
    executable(tmp_path / "bin" / "python", f'#!/bin/bash\nexec {sys.executable} "$@"\n')
    return tmp_path / "bin"


def test_slurm_processes_find_each_other_and_fail_in_one_sentence(commands, tmp_path):
    executable(commands / "srun", SRUN)
    environment = {
        **os.environ, "PATH": f"{commands}:{os.environ['PATH']}", "SLURM_JOB_ID": "1", "XLA_FLAGS": "",
        "JAX_COORDINATOR_PORT": str(port()),
    }  # fmt: skip
    # A batch that one device could take, but not two.
    arguments = [f"--config={TINY}", f"--workdir={tmp_path / 'run'}", "--config.train.batch=3"]
    done = subprocess.run(
        [str(SCRIPTS[0]), *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1, done
    assert "error: process 0 of 2: config.train.batch=3 is not a multiple of devices x" in done.stderr
    assert "(2 x 1)" in done.stderr and "Traceback" not in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: a process of the run ended with status 1")
    assert "repeat the sbatch command" in last
    assert not (tmp_path / "run").exists()


@pytest.mark.fast
def test_tpu_workers_get_the_arguments_as_they_were_given(commands):
    executable(commands / "gcloud", '#!/bin/bash\nprintf "%s\\n" "$@"\nexit ${STATUS:-0}\n')
    executable(commands / "python", '#!/bin/bash\nprintf "<%s>" "$@"\n')
    environment = {
        **os.environ, "PATH": f"{commands}:{os.environ['PATH']}",
        "TPU": "pod", "ZONE": "z", "FOLDER": str(ROOT),
    }  # fmt: skip
    call = [str(SCRIPTS[1]), "--config=a file.py", "--config.eval.tasks=('x',)"]
    done = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0 and done.stderr == ""
    *head, command = done.stdout.splitlines()
    assert head == ["compute", "tpus", "tpu-vm", "ssh", "pod", "--zone=z", "--worker=all"]
    command = command.removeprefix("--command=")
    shown = subprocess.run(
        ["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=20
    )
    assert shown.stdout == "<main.py><--distributed=auto><--config=a file.py><--config.eval.tasks=('x',)>"
    bare = subprocess.run(call[:1], env=environment, capture_output=True, text=True, timeout=20)
    assert bare.returncode and bare.stdout == "" and "give arguments for main.py" in bare.stderr
    failed = subprocess.run(
        call, env={**environment, "STATUS": "134"}, capture_output=True, text=True, timeout=20
    )
    assert failed.returncode == 134 and "ended with status 134" in failed.stderr
    del environment["ZONE"]
    unset = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=20)
    assert unset.returncode != 0 and "ZONE: set ZONE to its zone" in unset.stderr


@pytest.mark.fast
@pytest.mark.parametrize("given", ["2", "host,2,0", "host:1,2,2"])
def test_a_wrong_place_is_named(given):
    with (
        pytest.raises(UserError, match=f"^--distributed={given} is neither auto nor HOST:PORT,"),
        joined(given, 0),
    ):
        raise AssertionError("entered")
