"""How this process uses the host's CPU and memory; read by the C library and by JAX when they start."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pathlib
import platform
import re
import sys

from jaxlib.version import __version__ as jaxlib_version

# A training step on CPU works in hundreds of megabytes that the C library takes from the kernel and gives
# back each time; with huge pages that costs 512 times fewer page faults.
HUGE_PAGES = "glibc.malloc.hugetlb=1"

# XLA's options for programs on CPU: as quick as XLA's own level within the noise, as matrix products are
# library calls, and compiled in three quarters of the time.
CPU_COMPILER_OPTIONS: dict[str, int] = {"xla_backend_optimization_level": 1}

# XLA gives some products and sums on CPU to YNNPACK, and returns wrong numbers for a few of them or crashes
# (jaxlib 0.10.2 to 0.12.0; jax-ml/jax issues 39103 and 39257). What it costs: docs/performance.md.
LIBRARY = "xla_cpu_experimental_ynn_fusion_type"
NO_YNNPACK = f"--{LIBRARY}="
FLAG_KNOWN = [0, 13]  # versions of jaxlib below; a later one may not know the flag, and would stop


def cache_folder() -> pathlib.Path:
    """Where compiled programs are kept for the next start: a folder of the user and of this kind of CPU.

    Programs for CPU are machine code of the CPU that compiled them, and several kinds may share a home.
    """
    path = pathlib.Path("/proc/cpuinfo")
    found = re.search(r"(?:flags|Features)\s*: (.*)", path.read_text()) if path.exists() else None
    kind = found[1] if found else platform.processor() or platform.machine()
    home = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return home / "sparse_vis" / f"xla-{hashlib.sha256(kind.encode()).hexdigest()[:8]}"


def several_cpu_devices() -> bool:
    """Whether environment or arguments ask for several devices on CPU, in this process or in all."""
    virtual = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    joins = any(argument.lstrip("-").startswith("distributed") for argument in sys.argv)
    return virtual or joins or "JAX_NUM_CPU_DEVICES" in os.environ


def leave_out_ynnpack() -> None:
    """Have XLA compute on CPU without YNNPACK, unless the user chose its part.

    To be called before JAX makes its first array. Not beside libtpu, which reads XLA_FLAGS itself and may
    be of another age.
    """
    known = [int(part) for part in jaxlib_version.split(".")[:2]] < FLAG_KNOWN
    given = os.environ.get("XLA_FLAGS", "")
    if known and LIBRARY not in given and not importlib.util.find_spec("libtpu"):
        os.environ["XLA_FLAGS"] = f"{NO_YNNPACK} {given}".strip()


def prepare() -> None:
    """Set what must be set before Python starts; the process becomes itself again, once, with the same id.

    Call it first thing in a main module. Settings that the user made stay as they are, an empty one too:
    JAX_COMPILATION_CACHE_DIR= keeps no compiled programs.
    """
    # Where collectives wait for each other in a queue of steps, a thread per core is not enough and XLA
    # deadlocks. One device alone has no collectives, and more threads than cores make it slower.
    if several_cpu_devices():
        os.environ.setdefault("PJRT_NPROC", str(max(32, os.cpu_count() or 1)))
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_folder()))
    # TensorFlow, which only writes curves here, announces these kernels otherwise.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = HUGE_PAGES
        os.execv(sys.executable, sys.orig_argv)
