"""What the report shows of a run: evaluations and health as tables, curves as inline SVG."""

from __future__ import annotations

import io
import re
from typing import NamedTuple

import jax.numpy as jnp
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from sparse_vis.evals.results import table
from sparse_vis.report.images import Encoded
from sparse_vis.train.health import complaints, localization_measures, spread, token_measures
from sparse_vis.viz.figures import curve

Metrics = dict[str, tuple[np.ndarray, np.ndarray]]  # as from `viz.figures.read_metrics`
MEANINGS = {
    "S_rank": "effective rank of all tokens, 1 to their width",
    "S_rank_in_image": "the same among the tokens of one image, 1 to their number − 1",
    "S_spread": "how far token embeddings differ from image to image, 0 to 1",
    "cls_spread": "how far CLS embeddings differ from image to image, 0 to 1",
    "L_singular_largest": "largest singular value of L / √n",
    "L_singular_smallest": "smallest singular value of L / √n",
    "L_entropy": "normalised entropy of the rows of L: 1 is uniform, 0 is one token per patch",
    "L_coverage": "share of the tokens that win at least one patch",
    "prototype_usage": "share of the prototypes that at least one token chooses",
    "prototype_entropy": "normalised entropy of these choices, 0 to 1",
    "sinkhorn_error": "how far the targets are from using all prototypes equally, 0 to 1",
    "match_changed": "share of tokens of masked views whose match changed since the last measurement",
}
# Placeholders, to be replaced by the page's colours, which differ between light and dark mode.
TEXT, LINE = "#010203", "#040506"
STYLE = {
    "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 8, "axes.spines.top": False,
    "axes.spines.right": False, **dict.fromkeys(
        ("axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color", "ytick.color"), TEXT
    ),
}  # fmt: skip
LAST = ("gradient_norm", "learning_rate", "images_per_second", "input_wait_seconds")
OMITTED = ("epoch",)  # a straight line


class Table(NamedTuple):
    """A table of text, with sentences below it."""

    title: str
    head: list[str]
    rows: list[list[str]]
    notes: list[str]


def evaluation_tables(encoders: dict[str, dict]) -> list[Table]:
    """One table per task over all encoders of evaluation.json, with absent metrics and places of weights."""
    made = []
    for task in dict.fromkeys(task for entries in encoders.values() for task in entries):
        found = {name: entries[task] for name, entries in encoders.items() if task in entries}
        lines, notes = table(found)
        places = {name: entry["ran"].get("from") for name, entry in found.items()}
        notes += [f"{name}: weights of {place}" for name, place in places.items() if place]
        made.append(Table(task, lines[0] if lines else [], lines[1:], notes))
    return made


def health_measures(found: Encoded) -> dict[str, float]:
    """The health measures that need no training step, on the report's images."""
    measures = {
        **token_measures(jnp.asarray(found.S, jnp.float32)), **localization_measures(jnp.asarray(found.L)),
        "S_spread": jnp.mean(spread(jnp.asarray(found.embedding))),
        "cls_spread": jnp.mean(spread(jnp.asarray(found.cls))),
    }  # fmt: skip
    return {name: float(x) for name, x in measures.items() if np.isfinite(x)}


def health_table(now: dict[str, float], metrics: Metrics, tokens: int) -> Table:
    """Health measures on the report's images (now) and at the end of training, with warnings of collapse."""
    last = {n.removeprefix("health/"): pair for n, pair in metrics.items() if n.startswith("health/")}
    trained = {name: float(values[-1]) for name, (_, values) in last.items()}
    step = max((int(steps[-1]) for steps, _ in last.values()), default=0)
    notes = [
        f"{where}: {meaning} ({name} {measures[name]:.2g}). docs/training.md names the remedies."
        for where, measures in (("on these images", now), ("in training", trained))
        for name, meaning in complaints(measures, tokens).items()
    ]
    columns = (now, trained) if last else (now,)
    rows = [
        [name, *(f"{column[name]:.3g}" if name in column else "–" for column in columns), meaning]
        for name, meaning in MEANINGS.items()
        if name in now or name in trained
    ]
    head = ["measure", "these images", *([f"training, step {step}"] if last else []), "what"]
    return Table("", head, rows, notes or ["Nothing looks like collapse."])


def charts(metrics: Metrics) -> list[str]:
    """All curves of a run that are not always zero: the total, its terms, optimizer and speed, health."""
    names = [name for name in metrics if name not in OMITTED and np.any(metrics[name][1])]
    groups = (("total",), [n for n in names if n not in ("total", *LAST) and "/" not in n], LAST)
    order = (*(n for group in groups for n in group), *(n for n in names if n.startswith("health/")))
    return [_chart(name, *metrics[name]) for name in order if name in names]


def _chart(name: str, steps: np.ndarray, values: np.ndarray) -> str:
    """One curve as an SVG element, 280 by 150 points, with first and last value for screen readers."""
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}):
        figure = Figure(figsize=(280 / 72, 150 / 72), layout="constrained")
        axis = figure.subplots()
        curve(axis, steps, values, color=LINE, linewidth=1.8, marker="o" if len(steps) < 3 else None)
        axis.set_xlabel("step")
        axis.set_ylabel(name)
        axis.grid(True, color=TEXT, alpha=0.12, linewidth=0.6)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(TEXT, "currentColor").replace(LINE, "var(--accent)")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # these ids repeat in every chart, and are not referenced
    said = f"{name}: {values[0]:.4g} at step {steps[0]}, {values[-1]:.4g} at step {steps[-1]}"
    return svg.replace("<svg ", f'<svg role="img" aria-label="{said}" ', 1)
