"""Runs of several processes: connect them, let only process 0 print, and end all when one fails."""

import contextlib
import os
import re
import sys
import traceback
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils
from orbax.checkpoint import multihost

from sparse_vis.runtime import host, lock
from sparse_vis.runtime.errors import UserError, explained
from sparse_vis.runtime.paths import AnyPath

# After a process has been silent for this long, JAX ends the others. Its default is 100 s.
HEARTBEAT_SECONDS = 30
LOST = (
    "stopped by the error above; if another process ended first, its output shows the cause. Repeat the "
    "command to continue from what was saved."
)


@contextlib.contextmanager
def joined(others: str, step: int) -> Iterator[None]:
    """Context in which this process is one of several; only process 0 writes to stdout.

    Enter it before any other use of JAX. An exception inside ends this process at once, with status 1: a
    normal exit would wait for the other processes, and these for this one.

    Args:
        others: "auto" if JAX can find the processes itself (Slurm, TPU pods, Kubernetes, Open MPI), else
            HOST:PORT,PROCESSES,PROCESS: address of process 0, number of processes, index of this process.
        step: from which the run continues.

    Raises:
        UserError: `others` is neither of these, or there are no other processes.
    """
    _initialize(others)
    # After a SIGTERM before the first call of this function, JAX makes the processes agree to stop at step 1,
    # which a continued run never reaches. Hence this call, before the devices start, which takes a while.
    multihost_utils.reached_preemption_sync_point(step)
    process, count = jax.process_index(), jax.process_count()
    if process:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    try:
        yield
    except BaseException as error:
        if isinstance(error, SystemExit) and not error.code:
            raise
        what = str(error) if isinstance(error, UserError) else host.missing_devices()
        if what is None:
            traceback.print_exc()
            what = LOST
        print(f"error: process {process} of {count}: {what}", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(1)


@contextlib.contextmanager
def held(folder: AnyPath, doing: str, flag: str = "--output", name: str = lock.LOCK) -> Iterator[None]:
    """`runtime.lock.hold` for a run of several processes: process 0 takes the lock, the others wait for that.

    If another run holds the lock, process 0 raises a UserError, and the others end too.
    """
    with lock.hold(folder, doing, flag, name) if jax.process_index() == 0 else contextlib.nullcontext():
        # A barrier between processes, because one between devices needs a working collective.
        multihost.sync_global_processes(f"lock of {doing}", processes=set(range(jax.process_count())))
        yield


def _initialize(others: str) -> None:
    options = dict(heartbeat_timeout_seconds=HEARTBEAT_SECONDS)
    if others != "auto":
        match = re.fullmatch(r"([^,]+:\d+),(\d+),(\d+)", others)
        if match is None or int(match[3]) >= int(match[2]):
            raise UserError(
                f"--distributed={others} is neither auto nor HOST:PORT,PROCESSES,PROCESS "
                "(processes count from 0); launch/local.py shows how it is used."
            )
        options |= dict(
            coordinator_address=match[1], num_processes=int(match[2]), process_id=int(match[3]),
            cluster_detection_method="deactivate",
        )  # fmt: skip
    remedy = "start them with a script of launch/, or give HOST:PORT,PROCESSES,PROCESS."
    with explained(ValueError, "--distributed=auto finds no other processes", remedy):
        jax.distributed.initialize(**options)
