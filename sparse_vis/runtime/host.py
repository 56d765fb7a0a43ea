"""Settings for the host's CPU and memory, which the C library and JAX read when they start."""

import contextlib
import gc
import hashlib
import importlib.util
import os
import pathlib
import platform
import re
import sys
import warnings
from collections.abc import Iterator

from jaxlib.version import __version__ as jaxlib_version

# A training step on CPU allocates and frees hundreds of megabytes each time; with huge pages that causes 512
# times fewer page faults.
HUGE_PAGES = "glibc.malloc.hugetlb=1"

# Compiler options for programs on CPU. They run as fast as with XLA's default level, as matrix products are
# library calls, and compile in three quarters of the time. A level that the user set in XLA_FLAGS stays.
LEVEL = "xla_backend_optimization_level"
CPU_COMPILER_OPTIONS: dict[str, int] = {} if LEVEL in os.environ.get("XLA_FLAGS", "") else {LEVEL: 1}

# On CPU, XLA computes some products and sums with YNNPACK, a few of which come out wrong or crash
# (jaxlib 0.10.2 to 0.12.0; jax-ml/jax issues 39103 and 39257). Cost of switching it off: docs/performance.md.
LIBRARY = "xla_cpu_experimental_ynn_fusion_type"
NO_YNNPACK = f"--{LIBRARY}="
FLAG_KNOWN = [0, 13]  # jaxlib below this version knows the flag; a later one may stop at an unknown flag

QUICK_COMPILATION = 0.1  # seconds; programs that compile faster are not cached


def prepare() -> None:
    """Set environment variables that must be set before Python starts; on Linux, restart the process once.

    The restart (exec) keeps the process id. Call this first in a main module. Variables that the user has set
    stay as they are, also empty ones: JAX_COMPILATION_CACHE_DIR= turns the compilation cache off.
    """
    # With several devices, collectives in a queue of steps wait for each other: with one thread per core, XLA
    # can deadlock. One device has no collectives, and more threads than cores make it slower.
    virtual = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    joins = any(argument.lstrip("-").startswith("distributed") for argument in sys.argv)
    if virtual or joins or "JAX_NUM_CPU_DEVICES" in os.environ:
        os.environ.setdefault("PJRT_NPROC", str(max(32, os.cpu_count() or 1)))
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_folder()))
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = HUGE_PAGES
        os.execv(sys.executable, sys.orig_argv)


def cache_folder() -> pathlib.Path:
    """Folder of the persistent compilation cache: one per user and kind of CPU.

    Programs for CPU are machine code for the CPU that compiled them, and machines may share a home folder.
    """
    path = pathlib.Path("/proc/cpuinfo")
    found = re.search(r"(?:flags|Features)\s*: (.*)", path.read_text()) if path.exists() else None
    kind = found[1] if found else platform.processor() or platform.machine()
    home = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return home / "sparse_vis" / f"xla-{hashlib.sha256(kind.encode()).hexdigest()[:8]}"


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Context without garbage collection; objects that exist at its end are never collected (gc.freeze).

    For imports and tracing, which make many objects that stay: collection would take a sixth of their time.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collecting:
            gc.enable()


def keep_programs() -> None:
    """Turn on JAX's persistent compilation cache, unless the user has chosen a folder for it."""
    import jax

    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", QUICK_COMPILATION)


def leave_out_ynnpack() -> None:
    """Make XLA compute on CPU without YNNPACK, unless the user has set its flag.

    Call it before JAX makes its first array; later it can only warn. It does nothing if libtpu is installed,
    which reads XLA_FLAGS too, and whose version may not know the flag.
    """
    known = [int(part) for part in jaxlib_version.split(".")[:2]] < FLAG_KNOWN
    given = os.environ.get("XLA_FLAGS", "")
    if not known or LIBRARY in given or importlib.util.find_spec("libtpu"):
        return
    os.environ["XLA_FLAGS"] = f"{NO_YNNPACK} {given}".strip()
    # Asked in this way, JAX is neither imported nor started.
    started = getattr(sys.modules.get("jax._src.xla_bridge"), "backends_are_initialized", bool)
    if started() and sys.modules["jax"].default_backend() == "cpu":
        warnings.warn(
            "JAX was already in use when sparse_vis was imported, so XLA keeps using YNNPACK, which "
            "computes some products on CPU wrongly; import sparse_vis before creating the first JAX array.",
            stacklevel=3,
        )


def missing_devices() -> str | None:
    """An error sentence if JAX_PLATFORMS names devices that this machine lacks, else None.

    Call it after an exception: if devices are missing, JAX raises a bare AssertionError at its first use.
    """
    asked = os.environ.get("JAX_PLATFORMS")
    if not asked or "jax" not in sys.modules:
        return None
    try:
        sys.modules["jax"].devices()
    except Exception as error:
        reason = " ".join(str(error).split())
        return (
            f"JAX_PLATFORMS={asked} names devices that JAX cannot find here{reason and f' ({reason})'}; "
            "unset it to use the available ones, or install JAX for them (jax[cuda13] for NVIDIA GPUs) "
            "and check their driver."
        )
    return None
