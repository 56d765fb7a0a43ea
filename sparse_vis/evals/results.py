"""evaluation.json, which has every number with all settings, and the tables of evaluation.md."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable
from importlib.metadata import version

import jax
import numpy as np

from sparse_vis.evals.task import Result
from sparse_vis.runtime.errors import explained
from sparse_vis.runtime.files import read_json, write_json
from sparse_vis.runtime.paths import AnyPath

FORMAT = "sparse_vis evaluation 1"
PACKAGES = ("jax", "flax", "optax", "numpy", "pillow", "ml_collections")
VERSIONS = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


class Results:
    """The results in a workdir's evaluation.json; process 0 writes every change to disk, atomically.

    Attributes:
        encoders: encoder → task → {"settings", "metrics", "absent", "details", "ran"}.

    Raises:
        UserError: evaluation.json exists and is damaged.
    """

    def __init__(self, workdir: AnyPath):
        self.path = workdir / "evaluation.json"
        self.encoders: dict[str, dict] = _read(self.path)

    def finished(self, encoder: str, task: str, settings: dict) -> bool:
        """Whether this encoder and task were measured with exactly these settings."""
        known = self.encoders.get(encoder, {}).get(task)
        return known is not None and known["settings"] == plain(settings)

    def add(self, encoder: str, task: str, settings: dict, result: Result, ran: dict) -> None:
        """Store a result, in place of an earlier one of the same encoder and task.

        `settings`: all that determines the numbers; `ran`: facts about the run, which do not.
        """
        self.encoders.setdefault(encoder, {})[task] = {
            "settings": plain(settings),
            "metrics": plain(result.metrics),
            "absent": result.absent,
            "details": plain(result.details),
            "ran": {**ran, "device": jax.devices()[0].device_kind, **VERSIONS},
        }
        if jax.process_index() == 0:
            write_json(self.path, {"format": FORMAT, "encoders": self.encoders})

    def metrics(self, encoder: str, task: str) -> dict[str, dict[str, float | None]]:
        """What was measured → metric → number, or None if it was not finite."""
        return self.encoders[encoder][task]["metrics"]

    def tables(self, encoders: Iterable[str], tasks: Iterable[str], known: Iterable[str] = ()) -> str:
        """One Markdown table per task, and below it the absent metrics, except for `known` reasons."""
        text, encoders, known = [], list(encoders), set(known)
        for task in tasks:
            found = {name: dict(self.encoders[name][task]) for name in encoders}
            for entry in found.values():
                entry["absent"] = {metric: why for metric, why in entry["absent"].items() if why not in known}
            lines, notes = table(found)
            text += ["", f"## {task}", "", *markdown(lines)]
            text += ["", *map("- {}".format, notes)] if notes else []
        return "\n".join(text)

    def verdict(self, encoder: str, expected: Iterable) -> tuple[str, list[str]]:
        """Compare an encoder's results with published figures.

        Args:
            expected: rows of task, what was measured, metric, published figure, and its tolerance.

        Returns:
            A Markdown table, and the figures that were missed.
        """
        lines, missed = [["figure", "measured", "published", "tolerance", "verdict"]], []
        for task, of, metric, published, tolerance in expected:
            name = " ".join(part for part in (task, of, metric) if part)
            value = self.metrics(encoder, task).get(of, {}).get(metric)
            met = "absent" if value is None else "met" if abs(value - published) <= tolerance else "missed"
            lines.append([name, cell(value), cell(published), cell(tolerance), met])
            if met != "met":
                missed.append(f"{name} is {'absent' if value is None else cell(value)}")
        return "\n".join(["", "## published figures", "", *markdown(lines)]), missed


def table(found: dict[str, dict]) -> tuple[list[list[str]], list[str]]:
    """Entries of one task by encoder as rows of cells, the header first; sentences on absent metrics."""
    rows = [(name, of, metrics) for name, entry in found.items() for of, metrics in entry["metrics"].items()]
    columns = list(dict.fromkeys(column for *_, metrics in rows for column in metrics))
    named = any(of for _, of, _ in rows)
    lines = [["encoder", *["of"] * named, *columns]] if rows else []
    lines += [[name, *[of] * named, *(cell(metrics.get(c)) for c in columns)] for name, of, metrics in rows]
    absent: dict[str, list[str]] = {}
    for name, entry in found.items():
        for metric, why in entry["absent"].items():
            absent.setdefault(f"{metric}: {why}", []).append(name)
    return lines, [f"absent ({', '.join(names)}): {why}" for why, names in absent.items()]


def cell(value: float | int | None) -> str:
    """A number as text for a table; a dash for None."""
    return "-" if value is None else f"{value:.0f}" if value == int(value) > 9 else f"{value:.4g}"


def markdown(lines: list[list[str]]) -> list[str]:
    """Rows of cells, the header first, as an aligned Markdown table."""
    if not lines:
        return []
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rows = ["| " + " | ".join(t.rjust(w) for t, w in zip(line, widths, strict=True)) + " |" for line in lines]
    return [rows[0], "|" + "|".join("-" * (w + 1) + ":" for w in widths) + "|", *rows[1:]]


def plain(value):
    """A value in JSON types; numbers that are not finite become None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def _read(path: AnyPath) -> dict[str, dict]:
    remedy = "restore it from a copy, or delete it to measure everything again."
    with explained((OSError, ValueError), f"{path} cannot be used", remedy):
        if not path.exists():
            return {}
        found = read_json(path)
    if found.get("format") == FORMAT:
        return found["encoders"]
    print(f"note: {path} was written by another version and is replaced.", flush=True)
    return {}
