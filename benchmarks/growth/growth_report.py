"""Tables and picture of what benchmarks/growth/growth.py measured."""

from __future__ import annotations

import numpy as np

from benchmarks.growth.growth_arms import AXES, BASE, LENGTHS, NEEDS, SETS, point

LAWS = {
    "batch": "a + b B",
    "tokens": "a + b r + c r²: r joins every view's sequence",
    "prototypes": "a + b K",
    "image": "a + b n + c n², n patches; a: the local views",
    "views": "a + b V",
}


def table(results: dict) -> str:
    """Both tables as Markdown: times relative to the base, with what the products let expect beside."""
    lines = [
        "| axis | value | STELLAR ms | relative | expected | dense ViT ms | STELLAR / dense | expected | "
        "decoder's share | law |",
        "|" + 10 * "---|",
    ]
    for axis, values in AXES.items():
        base = results[point("stellar", axis, BASE[axis])]
        for value in values:
            ours, theirs, decoder = (results[point(arm, axis, value)] for arm in NEEDS)
            s, d = ours["seconds"], theirs["seconds"]
            cells = (
                axis, value, f"{1e3 * s:.1f}", f"{s / base['seconds']:.2f}",
                f"{ours['products'] / base['products']:.2f}", f"{1e3 * d:.1f}", f"{s / d:.2f}",
                f"{ours['products'] / theirs['products']:.2f}", f"{decoder['seconds'] / s:.0%}",
                LAWS[axis] if value == values[0] else "",
            )  # fmt: skip
            lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += [
        "",
        f"| r | entropic ms per {2 * SETS} pairs | exact ms | exact / entropic | equal, noisy copies | "
        "equal, unrelated | targets that entropic uses, unrelated |",
        "|" + 7 * "---|",
    ]
    for r in LENGTHS:
        entropic, exact = results[f"entropic {r}"], results[f"exact {r}"]
        a, b = np.array(entropic["partners"]), np.array(exact["partners"])
        copies, unrelated = (np.mean(a[part] == b[part]) for part in (slice(None, SETS), slice(SETS, None)))
        used = np.mean([len(set(row)) / r for row in a[SETS:].tolist()])
        times = [1e3 * m["seconds"] for m in (entropic, exact)]
        lines.append(
            f"| {r} | {times[0]:.2f} | {times[1]:.2f} | {times[1] / times[0]:.2f} | {copies:.1%} | "
            f"{unrelated:.1%} | {used:.1%} |"
        )
    return "\n".join(lines)


def plot(results: dict, path: str) -> None:
    """A panel per axis, logarithmic, and one of matching; dashed: the law through the base's time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(2, 3, figsize=(12, 7), layout="constrained")
    labels = {"stellar": "STELLAR", "dense": "dense ViT", "decoder": "decoder alone"}
    for panel, (axis, values) in zip(panels.flat, AXES.items(), strict=False):
        for colour, (arm, label) in enumerate(labels.items()):
            found = [results[point(arm, axis, value)] for value in values]
            base = results[point(arm, axis, BASE[axis])]
            panel.plot(values, [1e3 * p["seconds"] for p in found], "o-", color=f"C{colour}", label=label)
            law = [1e3 * base["seconds"] * p["products"] / base["products"] for p in found]
            panel.plot(values, law, "--", color=f"C{colour}", alpha=0.6, label=f"{label}, by products")
        panel.set(xlabel=axis, ylabel="ms per loss and gradients")
    # Where the lines leave room.
    panels.flat[2].legend(fontsize=8, loc="center", bbox_to_anchor=(0.5, 0.3))
    matched = panels.flat[-1]
    for matching, colour, power, law in (("entropic", "C3", 2, "r²"), ("exact", "C4", 3, "r³")):
        times = {r: 1e3 * results[f"{matching} {r}"]["seconds"] for r in LENGTHS}
        matched.plot(LENGTHS, [*times.values()], "o-", color=colour, label=matching)
        expected = [times[16] * (r / 16) ** power for r in LENGTHS]
        matched.plot(LENGTHS, expected, "--", color=colour, alpha=0.6, label=law)
    matched.set(xlabel="tokens r", ylabel=f"ms to match {2 * SETS} pairs of sets")
    matched.legend(fontsize=8)
    for panel, values in zip(panels.flat, (*AXES.values(), LENGTHS), strict=True):
        panel.set(xscale="log", yscale="log")
        panel.set_xticks(values, map(str, values))
        panel.minorticks_off()
    figure.savefig(path, dpi=110)
