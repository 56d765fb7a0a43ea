"""Several processes of main.py, or of a tool, on this machine, over the loopback address.

    python launch/local.py --processes=2 --devices=2 -- --config=configs/quickstart.py --workdir=runs/two

    --processes=2    number of processes
    --tool=extract   start this tool of the package instead of main.py
    --devices=2      of each process: GPUs if there are any, else virtual CPU devices (default: 1)
    --               what follows is for main.py or the tool

Shows what process 0 prints, and the last output of another process if it dies. On SIGTERM or Ctrl-C all
processes save and stop; a second signal, at least two seconds later, kills them. When one dies, the others
are ended within 10 seconds.
"""

import argparse
import collections
import os
import pathlib
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import NoReturn

MAIN = pathlib.Path(__file__).parent.parent / "main.py"
DEVICE_FILES = pathlib.Path("/dev")  # of the NVIDIA driver: nvidia0, nvidia1 …
GRACE_SECONDS = 10  # after one process died, the others have this long to report errors; then they are killed
SAME_SECONDS = 2  # `timeout` and others signal a process and its group: two signals this close count as one
LAST_LINES = 20  # kept of each process but 0, and shown if it dies first


def gpus(needed: int) -> list[str]:
    """Names of the usable GPUs, as in CUDA_VISIBLE_DEVICES; empty if there are none.

    Exits if there are some, but fewer than needed: a process without one would silently compute on the CPU.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        found = [path.name for path in DEVICE_FILES.glob("nvidia*") if path.name[6:].isdigit()]
        # Without such files there is no GPU, or the driver exposes it in another way (WSL).
        found = sorted((name.removeprefix("nvidia") for name in found), key=int)
        names = found or list(map(str, range(needed)))
    else:
        names = re.findall(r"[^,\s]+", given)
        names = names[: names.index("-1")] if "-1" in names else names
    platforms = os.environ.get("JAX_PLATFORMS", "").split(",")
    if 0 < len(names) < needed and {"", "cuda", "gpu"} & set(platforms):
        sys.exit(
            f"error: --processes times --devices is {needed}, but there are {len(names)} GPUs here "
            f"({'CUDA_VISIBLE_DEVICES' if given else DEVICE_FILES / 'nvidia*'}: {', '.join(names)}); give "
            "fewer, or set JAX_PLATFORMS=cpu for virtual devices of the CPU."
        )
    return names


def environment(devices: int, process: int, gpus: list[str]) -> dict[str, str]:
    """Environment variables of one process: its share of the GPUs, else its virtual CPU devices."""
    count = "--xla_force_host_platform_device_count"
    flags = [flag for flag in os.environ.get("XLA_FLAGS", "").split() if count not in flag]
    mine = ",".join(gpus[process * devices : (process + 1) * devices])
    return {
        **os.environ,
        "XLA_FLAGS": " ".join([*flags, f"{count}={devices}"]),
        **({"CUDA_VISIBLE_DEVICES": mine} if gpus else {}),
        "PYTHONUNBUFFERED": "1",
    }


def free_address() -> str:
    """A loopback address with a port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{listener.getsockname()[1]}"


class Processes:
    """Start the processes of one run.

    Args:
        command: of one process, without --distributed=…. processes, devices: as on the command line.
    """

    def __init__(self, command: list[str], processes: int, devices: int):
        shared = gpus(processes * devices)
        address = free_address()
        self.ended = queue.Queue()  # indices of processes, in the order in which they ended
        self.last_lines = [collections.deque(maxlen=LAST_LINES) for _ in range(processes)]
        self.signalled = None
        self.all, self.readers = [], []
        for index in range(processes):
            # In its own session: Ctrl-C reaches only this launcher, which forwards it.
            process = subprocess.Popen(
                [*command, f"--distributed={address},{processes},{index}"],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                env=environment(devices, index, shared) | {"JAX_COORDINATOR_BIND_ADDRESS": address},
                start_new_session=True,
            )  # fmt: skip
            self.all.append(process)
            self.readers.append(threading.Thread(target=self._read, args=(index,), daemon=True))
            threading.Thread(target=self._wait, args=(index,), daemon=True).start()
            self.readers[-1].start()

    def _read(self, index: int) -> None:
        for line in self.all[index].stdout:
            if index == 0:
                print(line, end="", flush=True)
            else:
                self.last_lines[index].append(line)

    def _wait(self, index: int) -> None:
        self.all[index].wait()
        self.ended.put(index)

    def stop(self, *_) -> None:
        """Signal handler: SIGTERM to all, the second time SIGKILL."""
        now = time.monotonic()
        if self.signalled is None:
            self.signalled = now
            self.send(signal.SIGTERM)
        elif now - self.signalled > SAME_SECONDS:
            self.send(signal.SIGKILL)

    def send(self, number: int) -> None:
        """Send a signal to every running process."""
        for process in self.all:
            process.send_signal(number)

    def outcome(self) -> str | None:
        """Wait until all processes have ended; None if all succeeded, else one sentence about the failure."""
        dead, deadline = None, 0.0
        try:
            for _ in self.all:
                index = self.ended.get(timeout=None if dead is None else max(deadline - time.monotonic(), 0))
                if dead is None and self.all[index].returncode:
                    dead, deadline = index, time.monotonic() + GRACE_SECONDS
        except queue.Empty:
            self.send(signal.SIGKILL)
        for reader in self.readers:
            reader.join(1)  # with a limit: data workers may hold the pipe open a little longer
        if dead is None:
            return None
        for line in self.last_lines[dead]:
            print(f"[process {dead}] {line}", end="", file=sys.stderr)
        status = self.all[dead].returncode
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        return (
            f"process {dead} of {len(self.all)} {how}, so the others were ended too; fix the cause and "
            "repeat the command: it continues from what was saved, if anything was."
        )


def refuse(message: str) -> NoReturn:
    """Exit with one sentence instead of argparse's usage text."""
    remedy = "put -- before what is for main.py" if message.startswith("unrecognized") else "see --help"
    sys.exit(f"error: {message}; {remedy}.")


def main() -> None:
    """Start the processes and wait for them."""
    parser = argparse.ArgumentParser(
        usage=__doc__.split("\n\n")[1].strip(), description=__doc__.split("\n\n", 2)[2], add_help=True,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.error = refuse
    parser.add_argument("--processes", type=int, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--devices", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--tool", help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.processes < 1 or given.devices < 1:
        sys.exit("error: --processes and --devices must be at least 1.")
    program = ["-m", "sparse_vis", given.tool] if given.tool else [str(MAIN)]
    early = []  # signals that come while the processes are started
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *received: early.append(received))
    processes = Processes([sys.executable, *program, *given.arguments], given.processes, given.devices)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, processes.stop)
    if early:
        processes.stop()
    if sentence := processes.outcome():
        sys.exit(f"error: {sentence}")


if __name__ == "__main__":
    main()
