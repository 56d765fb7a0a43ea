"""The record of a result: numbers, device, versions and date, as JSON."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import sys

import jax

from sparse_vis.runtime.errors import UserError

PACKAGES = ("jax", "jaxlib", "flax", "optax", "ott-jax", "numpy", "torch", "transformers")


def machine() -> dict:
    """Device, versions and date, for the record."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "device": jax.devices()[0].device_kind, "devices": jax.device_count(), "cores": os.cpu_count(),
        "processor": processor(), "python": platform.python_version(), "versions": versions,
        "date": datetime.date.today().isoformat(), "command": " ".join(sys.argv),
    }  # fmt: skip


def processor() -> str:
    """Name of the host's processor."""
    info = pathlib.Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def check_json(path: str | None) -> None:
    """Refuse, before any long work, a file for the numbers that cannot be written.

    Raises:
        UserError: its folder does not exist.
    """
    if path and not pathlib.Path(path).absolute().parent.is_dir():
        raise UserError(f"--json={path}: its folder does not exist; create it, or use benchmarks/results/.")


def write_json(path: str | None, result: dict) -> None:
    """Write a result with the machine's record beside it; nothing where no path is given."""
    if path:
        text = json.dumps({**result, "machine": machine()}, indent=1)
        pathlib.Path(path).write_text(text + "\n")
