"""Configuration, evaluations and health as tables of text."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from sparse_vis.evals.results import table
from sparse_vis.report.images import Encoded
from sparse_vis.train.health import complaints, localization_measures, spread, token_measures

MEANINGS = {
    "S_rank": "effective rank of all tokens, 1 to their width",
    "S_rank_in_image": "the same among the tokens of one image, 1 to their number − 1",
    "S_spread": "how far token embeddings differ from image to image, 0 to 1",
    "cls_spread": "the same of CLS embeddings",
    "L_singular_largest": "largest singular value of L / √n",
    "L_singular_smallest": "smallest singular value of L / √n",
    "L_entropy": "of the rows of L: 1 is undecided, 0 is hard",
    "L_coverage": "share of the tokens that win at least one patch",
    "prototype_usage": "share of the prototypes that are the favourite of at least one token",
    "prototype_entropy": "evenness of these choices, 0 to 1",
    "sinkhorn_error": "distance of the targets' use of the prototypes from equal use, 0 to 1",
    "match_changed": "share of tokens of masked views with another partner than at the measurement before",
}


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        title: of the table. head: of the columns. rows: cells. notes: sentences below it.
    """

    title: str
    head: list[str]
    rows: list[list[str]]
    notes: list[str]


def evaluation_tables(encoders: dict[str, dict]) -> list[Table]:
    """One table per task over all encoders of evaluation.json, with absent metrics and origins of weights.

    Args:
        encoders: encoder → task → entry, as `evals.results.Results` holds them.
    """
    tasks = dict.fromkeys(task for entries in encoders.values() for task in entries)
    return [_evaluation(task, {n: e[task] for n, e in encoders.items() if task in e}) for task in tasks]


def _evaluation(task: str, found: dict[str, dict]) -> Table:
    lines, notes = table(found)
    origins = [
        f"{name}: weights of {place}" for name, entry in found.items() if (place := entry["ran"].get("from"))
    ]
    return Table(task, lines[0] if lines else [], lines[1:], notes + origins)


def health_measures(found: Encoded) -> dict[str, float]:
    """The health measures that need no training step, on the report's images.

    Args:
        found: encoded images.
    """
    S, L = jnp.asarray(found.S, jnp.float32), jnp.asarray(found.L)
    measures = token_measures(S) | localization_measures(L)
    measures |= {
        "S_spread": jnp.mean(spread(jnp.asarray(found.embedding))),
        "cls_spread": jnp.mean(spread(jnp.asarray(found.cls))),
    }
    return {name: float(x) for name, x in measures.items() if np.isfinite(x)}


def health_table(
    now: dict[str, float], metrics: dict[str, tuple[np.ndarray, np.ndarray]], tokens: int
) -> Table:
    """Health measures on the report's images and the last ones of training, with warnings of collapse.

    Args:
        now: from `health_measures`. metrics: of the run; empty if there are none. tokens: r.
    """
    last = {n.removeprefix("health/"): pair for n, pair in metrics.items() if n.startswith("health/")}
    trained = {name: float(values[-1]) for name, (_, values) in last.items()}
    step = max((int(steps[-1]) for steps, _ in last.values()), default=0)
    notes = [
        f"{where}: {meaning} ({name} {measures[name]:.2g}). docs/training.md names the remedies."
        for where, measures in (("on these images", now), ("in training", trained))
        for name, meaning in complaints(measures, tokens).items()
    ]
    rows = [
        [
            name,
            *(f"{m[name]:.3g}" if name in m else "–" for m in ((now, trained) if last else (now,))),
            meaning,
        ]
        for name, meaning in MEANINGS.items()
        if name in now or name in trained
    ]
    head = ["measure", "these images", *([f"training, step {step}"] if last else []), "what"]
    return Table("", head, rows, notes or ["Nothing looks like collapse."])


def flat(values: dict, prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as (dotted name, value), in their order."""
    found = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += flat(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", f"{value}" if value != "" else "–"))
    return found
