"""How this process uses the host's CPU and memory; read by the C library and by JAX when they start."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pathlib
import platform
import re
import sys
import warnings

from jaxlib.version import __version__ as jaxlib_version

# A training step on CPU works in hundreds of megabytes that the C library takes from the kernel and gives
# back each time; with huge pages that costs 512 times fewer page faults.
HUGE_PAGES = "glibc.malloc.hugetlb=1"

# XLA's options for programs on CPU: as quick as XLA's own level within the noise, as matrix products are
# library calls, and compiled in three quarters of the time. A level that the user gave in XLA_FLAGS stays.
LEVEL = "xla_backend_optimization_level"
CPU_COMPILER_OPTIONS: dict[str, int] = {} if LEVEL in os.environ.get("XLA_FLAGS", "") else {LEVEL: 1}

# XLA gives some products and sums on CPU to YNNPACK, and returns wrong numbers for a few of them or crashes
# (jaxlib 0.10.2 to 0.12.0; jax-ml/jax issues 39103 and 39257). What it costs: docs/performance.md.
LIBRARY = "xla_cpu_experimental_ynn_fusion_type"
NO_YNNPACK = f"--{LIBRARY}="
FLAG_KNOWN = [0, 13]  # versions of jaxlib below; a later one may not know the flag, and would stop


QUICK_COMPILATION = 0.1  # seconds; what takes less is not worth a file


def cache_folder() -> pathlib.Path:
    """Where compiled programs are kept for the next start: a folder of the user and of this kind of CPU.

    Programs for CPU are machine code of the CPU that compiled them, and several kinds may share a home.
    """
    path = pathlib.Path("/proc/cpuinfo")
    found = re.search(r"(?:flags|Features)\s*: (.*)", path.read_text()) if path.exists() else None
    kind = found[1] if found else platform.processor() or platform.machine()
    home = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return home / "sparse_vis" / f"xla-{hashlib.sha256(kind.encode()).hexdigest()[:8]}"


def keep_programs() -> None:
    """Keep compiled programs for the next process, in notebooks too, unless the user chose a folder."""
    import jax

    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", QUICK_COMPILATION)


def several_cpu_devices() -> bool:
    """Whether environment or arguments ask for several devices on CPU, in this process or in all."""
    virtual = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    joins = any(argument.lstrip("-").startswith("distributed") for argument in sys.argv)
    return virtual or joins or "JAX_NUM_CPU_DEVICES" in os.environ


def leave_out_ynnpack() -> None:
    """Have XLA compute on CPU without YNNPACK, unless the user chose its part.

    To be called before JAX makes its first array; afterwards it can only warn. Not beside libtpu, which reads
    XLA_FLAGS itself and may be of another age.
    """
    known = [int(part) for part in jaxlib_version.split(".")[:2]] < FLAG_KNOWN
    given = os.environ.get("XLA_FLAGS", "")
    if known and LIBRARY not in given and not importlib.util.find_spec("libtpu"):
        os.environ["XLA_FLAGS"] = f"{NO_YNNPACK} {given}".strip()
        if _computes_on_cpu():
            warnings.warn(
                "JAX was in use before sparse_vis was imported: XLA goes on computing with YNNPACK, which "
                "gets some products on CPU wrong; import sparse_vis before JAX makes its first array.",
                stacklevel=3,
            )


def _computes_on_cpu() -> bool:
    """Whether JAX has started already, on CPU; neither imports nor starts it."""
    started = getattr(sys.modules.get("jax._src.xla_bridge"), "backends_are_initialized", bool)
    return started() and sys.modules["jax"].default_backend() == "cpu"


def missing_devices() -> str | None:
    """The sentence for a JAX_PLATFORMS that this machine does not have; None where that is not what is wrong.

    For the moment after an exception: JAX raises a bare AssertionError wherever it is first used.
    """
    asked = os.environ.get("JAX_PLATFORMS")
    if not asked or "jax" not in sys.modules:
        return None
    try:
        sys.modules["jax"].devices()
    except Exception as error:
        reason = " ".join(str(error).split())
        return (
            f"JAX_PLATFORMS={asked} asks for devices that JAX does not find here{reason and f' ({reason})'}; "
            "unset it to compute on what there is, or install JAX for them (jax[cuda13] for NVIDIA GPUs) and "
            "see that their driver works."
        )
    return None


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
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = HUGE_PAGES
        os.execv(sys.executable, sys.orig_argv)
