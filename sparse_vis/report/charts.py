"""Training curves as inline SVG in the page's colours, for light and dark mode."""

from __future__ import annotations

import io
import re

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from sparse_vis.viz.figures import curve

# Placeholder colours, which are replaced by those of the page.
TEXT, LINE = "#010203", "#040506"
STYLE = {
    "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 8, "axes.spines.top": False,
    "axes.spines.right": False, **dict.fromkeys(
        ("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color"), TEXT
    ),
}  # fmt: skip
FIRST = ("total",)
LAST = ("gradient_norm", "learning_rate", "images_per_second", "input_wait_seconds")
OMITTED = ("epoch",)  # a straight line


def chart(name: str, steps: np.ndarray, values: np.ndarray) -> str:
    """One curve as an SVG element, 280 by 150 points, with first and last value for screen readers.

    Args:
        name: title, and salt of the element ids. steps, values: (m,).
    """
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=(280 / 72, 150 / 72), layout="constrained")
        axis = figure.subplots()
        curve(axis, steps, values, color=LINE, linewidth=1.8, marker="o" if len(steps) < 3 else None)
        axis.set_title(name, fontsize=9, loc="left")
        axis.grid(True, color=TEXT, alpha=0.12, linewidth=0.6)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(TEXT, "currentColor").replace(LINE, "var(--accent)")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # these ids repeat in every chart, and are not referenced
    said = f"{name}: {values[0]:.4g} at step {steps[0]}, {values[-1]:.4g} at step {steps[-1]}"
    return svg.replace("<svg ", f'<svg role="img" aria-label="{said}" ', 1)


def in_order(names: list[str]) -> list[str]:
    """Names of curves in the order of the page: total, terms, optimizer, speed, health."""
    terms = [n for n in names if n not in (*FIRST, *LAST, *OMITTED) and "/" not in n]
    health = [n for n in names if n.startswith("health/")]
    return [n for n in (*FIRST, *terms, *LAST, *health) if n in names]


def charts(metrics: dict[str, tuple[np.ndarray, np.ndarray]]) -> list[str]:
    """All curves of a run, except those that are always zero.

    Args:
        metrics: from `viz.figures.read_metrics`.
    """
    return [chart(name, *metrics[name]) for name in in_order(list(metrics)) if np.any(metrics[name][1])]
