"""Commands of the project as processes of their own, quick to start."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TINY = ROOT / "tests" / "train" / "tiny_config.py"
CACHE = pathlib.Path(tempfile.gettempdir()) / "sparse_vis_faults_cache"


def environment() -> dict[str, str]:
    """CPU only, and one compilation cache for all commands."""
    return {
        **os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(CACHE), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }  # fmt: skip


def start(arguments: list[str], log: pathlib.Path, program: str = "main.py") -> subprocess.Popen:
    """Start main.py, or a module as `-m NAME`; both outputs go to the log, which is begun anew."""
    with log.open("w") as file:
        return subprocess.Popen(
            [sys.executable, *program.split(), *arguments],
            stdout=file, stderr=subprocess.STDOUT, env=environment(), cwd=ROOT,
        )  # fmt: skip
