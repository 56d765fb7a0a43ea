"""The results of benchmarks/evidence.py as the tables of docs/results.md."""

from __future__ import annotations

import collections
import json
import pathlib
import re
import statistics

from benchmarks.experiments import GROUPS, Group
from sparse_vis.errors import UserError


def number(result: dict, path: str) -> float | None:
    """A number of a result by its path, such as metrics/trained/knn/mean_S/k20; None where it is absent."""
    for name in path.split("/", 4):
        result = result.get(name) if isinstance(result, dict) else None
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
        for encoder, called in (("trained", name), *((e, f"{name}: {e}") for e in row.shown)):
            if not (runs := by_row.get(name)):
                continue
            paths = [column.path.replace("ENCODER", encoder) for column in group.columns]
            values = [[x for run in runs if (x := number(run, path)) is not None] for path in paths]
            if encoder != "trained":  # health is the trained model's
                own = [path.startswith("health") for path in paths]
                values = [[] if no else found for no, found in zip(own, values, strict=True)]
            cells = [cell(v, column.digits) for v, column in zip(values, group.columns, strict=True)]
            alarms = str(sum(bool(run["alarms"]) for run in runs)) if encoder == "trained" else ""
            lines.append(f"| {called} | " + " | ".join(cells) + f" | {alarms} |")
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
