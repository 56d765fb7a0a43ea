"""The results of benchmarks/evidence/evidence.py as the tables of docs/results.md."""

from __future__ import annotations

import collections
import json
import pathlib
import re
import statistics

from benchmarks.evidence.experiments import GROUPS, Group
from sparse_vis.runtime.errors import UserError

TRAINED = "trained"  # the encoder that a run trained, in its results


def metrics(evaluation: dict) -> dict[str, dict]:
    """Encoder -> task -> metrics, of an evaluation.json's content."""
    return {
        encoder: {task: result["metrics"] for task, result in tasks.items()}
        for encoder, tasks in evaluation["encoders"].items()
    }


def number(result: dict, encoder: str, path: tuple[str, ...]) -> float | None:
    """A number of a result by its keys; None where it is absent. Health is the trained model's alone."""
    if path[0] != "health":
        result = result["metrics"].get(encoder)
    elif encoder != TRAINED:
        return None
    for names in path:
        held = result if isinstance(result, dict) else {}
        result = next((held[name] for name in names.split("|") if name in held), None)
    return result if isinstance(result, int | float) else None


def cell(values: list[float], digits: int) -> str:
    """Mean ± standard deviation over seeds; how many there are, where they are not three."""
    if not values:
        return "–"
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    count = f" (n={len(values)})" if len(values) != 3 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}{count}"


def table(group: Group, results: list[dict]) -> str:
    """One group as a Markdown table, a row per experiment and per encoder measured beside one."""
    by_row = collections.defaultdict(list)
    for result in results:
        by_row[result["row"]].append(result)
    lines = ["| |" + "|".join(column.title for column in group.columns) + "| alarms |"]
    lines.append("|---" * (len(group.columns) + 2) + "|")
    for name, row in group.rows.items():
        if not (runs := by_row.get(name)):
            continue
        for encoder in (TRAINED, *row.shown):
            own = encoder == TRAINED
            cells = [name if own else f"{name}: {encoder}"]
            for column in group.columns:
                found = [number(run, encoder, column.path) for run in runs]
                cells.append(cell([x for x in found if x is not None], column.digits))
            cells.append(str(sum(bool(run["alarms"]) for run in runs)) if own else "")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write_tables(results: pathlib.Path, page: pathlib.Path) -> None:
    """Replace what stands between `<!-- NAME -->` and `<!-- end -->` by the table of each group.

    Args:
        results: folder of result files. page: Markdown with the two marks of every group.

    Raises:
        UserError: the page has no marks for a group.
    """
    text = page.read_text()
    for name, group in GROUPS.items():
        found = [json.loads(file.read_text()) for file in sorted((results / name).glob("*.json"))]
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not pattern.search(text):
            raise UserError(f"{page} has no marks <!-- {name} --> and <!-- end -->; add both.")
        body = table(group, found) if found else "*Not run yet.*"
        text = pattern.sub(lambda match, body=body: f"{match[1]}\n{body}\n\n{match[2]}", text)
    page.write_text(text)
