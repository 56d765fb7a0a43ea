"""How this process uses the host's CPU and memory; read by the C library and by JAX when they start."""

from __future__ import annotations

import os
import sys

# A training step on CPU works in hundreds of megabytes that the C library takes from the kernel and gives
# back each time; with huge pages that costs 512 times fewer page faults.
HUGE_PAGES = "glibc.malloc.hugetlb=1"

# XLA's options for programs on CPU: the same speed of the result (matrix products are library calls), and
# half the time to compile it.
CPU_COMPILER_OPTIONS = {"xla_backend_optimization_level": 1, "xla_cpu_use_fusion_emitters": False}


def prepare() -> None:
    """Set what must be set before Python starts; the process becomes itself again, once, with the same id.

    Call it first thing in a main module. Settings that the user made stay as they are.
    """
    # On two cores XLA's own thread pool deadlocks under a queue of steps.
    os.environ.setdefault("PJRT_NPROC", "32")
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = HUGE_PAGES
        os.execv(sys.executable, sys.orig_argv)
