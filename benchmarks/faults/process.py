"""Commands of the project as processes of their own."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TINY = ROOT / "tests" / "train" / "tiny_config.py"
CACHE = pathlib.Path(tempfile.gettempdir()) / "sparse_vis_faults_cache"


def start(program: str, arguments: list[str], log: pathlib.Path) -> subprocess.Popen:
    """Start main.py, or a module as `-m NAME`; both outputs go to the log, which is begun anew."""
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(CACHE), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }  # fmt: skip
    with log.open("w") as file:
        return subprocess.Popen(
            [sys.executable, *program.split(), *arguments],
            stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=ROOT,
        )  # fmt: skip


def finish(program: str, arguments: list[str]) -> None:
    """Run a program of the project to its end.

    Raises:
        RuntimeError: it fails, with the end of what it printed.
    """
    with tempfile.NamedTemporaryFile() as file:
        log = pathlib.Path(file.name)
        if status := start(program, arguments, log).wait():
            raise RuntimeError(f"ended with status {status}: {log.read_text()[-500:]}")
