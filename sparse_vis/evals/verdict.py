"""Compare measured figures with published ones: met, missed or absent."""

from __future__ import annotations

from collections.abc import Iterable

from sparse_vis.evals.results import Results, cell, markdown


def verdict(results: Results, encoder: str, expected: Iterable) -> tuple[str, list[str]]:
    """Compare results with figures that are to be met within a tolerance, above or below.

    Args:
        results: of finished tasks. encoder: name of the encoder to compare.
        expected: rows of task, what was measured, metric, published figure and tolerance.

    Returns:
        A Markdown table of measured, published, tolerance and verdict, and the figures that were not met.
    """
    lines, missed = [["figure", "measured", "published", "tolerance", "verdict"]], []
    for task, of, metric, published, tolerance in expected:
        name = " ".join(part for part in (task, of, metric) if part)
        measured = results.metrics(encoder, task).get(of, {}).get(metric)
        found = (
            "absent" if measured is None else "met" if abs(measured - published) <= tolerance else "missed"
        )
        lines.append([name, cell(measured), cell(published), cell(tolerance), found])
        if found != "met":
            missed.append(f"{name} is {cell(measured) if measured is not None else 'absent'}")
    return "\n".join(["", "## published figures", "", *markdown(lines)]), missed
