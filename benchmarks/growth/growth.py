"""Measure how the cost of training, and of matching, grows with batch, tokens, prototypes, images and views.

    python -m benchmarks.growth.growth --json=benchmarks/results/growth.json --plot=docs/images/growth.png

Times loss and gradients of a small STELLAR (width 128, 4 layers), of a dense ViT of the same size on the same
views (no queries, factorization or prototype heads; it decodes its own patch features), and of the decoder
alone. The expected growth is that of the counted matrix products. A time is the least of 5 calls in each of 6
rounds through all points, because shared machines can be slow for minutes.
"""

import functools
import itertools
import json

from sparse_vis.runtime import host, paths

if __name__ == "__main__":
    host.prepare()

import jax
import numpy as np

from benchmarks.growth import growth_arms as arms
from benchmarks.speed.command import check_file, machine, script_parser
from benchmarks.speed.measure import compiled, timed
from sparse_vis.runtime.errors import command_line

ROUNDS = 6
LAWS = {
    "batch": "a + b B",
    "tokens": "a + b r + c r²: r joins every view's sequence",
    "prototypes": "a + b K",
    "image": "a + b n + c n², n patches; a: the local views",
    "views": "a + b V",
}


def points() -> dict[str, dict]:
    """Name of each point -> arguments of `measure`."""
    found = {}
    for axis, values in arms.AXES.items():
        for value, arm in itertools.product(values, arms.NEEDS):
            found[arms.point(arm, axis, value)] = {"arm": arm, "sizes": arms.BASE | {axis: value}}
    for matching, length in itertools.product(arms.MATCHINGS, arms.LENGTHS):
        found[f"{matching} {length}"] = {"arm": matching, "sizes": {"tokens": length}}
    return found


@functools.cache
def program_of(arm: str, **sizes: int) -> tuple:
    """The compiled program of a point, for all rounds, and its arguments."""
    function, arguments = arms.ARMS[arm](**sizes)
    return compiled(function, *arguments), arguments


def measure(arm: str, sizes: dict) -> dict:
    """Seconds and products of one point; of a matching, also the partners that it found."""
    program, arguments = program_of(arm, **sizes)
    timing = timed(lambda: program.call(*arguments), repeats=5, warmup=1)
    found = {"seconds": timing["min"], "products": program.products}
    if arm in arms.MATCHINGS:
        found["partners"] = jax.device_get(program.call(*arguments)).tolist()
    return found


def table(results: dict) -> str:
    """Both tables as Markdown: times relative to the base, and the ratios of products as expectation."""
    lines = [
        "| axis | value | STELLAR ms | relative | expected | dense ViT ms | STELLAR / dense | expected | "
        "decoder's share | law |",
        "|" + 10 * "---|",
    ]
    for axis, values in arms.AXES.items():
        base = results[arms.point("stellar", axis, arms.BASE[axis])]
        for value in values:
            ours, theirs, decoder = (results[arms.point(arm, axis, value)] for arm in arms.NEEDS)
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
        f"| r | entropic ms per {2 * arms.SETS} pairs | exact ms | exact / entropic | equal, noisy copies | "
        "equal, unrelated | targets that entropic uses, unrelated |",
        "|" + 7 * "---|",
    ]
    for r in arms.LENGTHS:
        entropic, exact = results[f"entropic {r}"], results[f"exact {r}"]
        a, b = np.array(entropic["partners"]), np.array(exact["partners"])
        copies, unrelated = (
            np.mean(a[part] == b[part]) for part in (slice(None, arms.SETS), slice(arms.SETS, None))
        )
        used = np.mean([len(set(row)) / r for row in a[arms.SETS :].tolist()])
        times = [1e3 * m["seconds"] for m in (entropic, exact)]
        lines.append(
            f"| {r} | {times[0]:.2f} | {times[1]:.2f} | {times[1] / times[0]:.2f} | {copies:.1%} | "
            f"{unrelated:.1%} | {used:.1%} |"
        )
    return "\n".join(lines)


def plot(results: dict, path: str) -> None:
    """Plot a logarithmic panel per axis and one of matching; dashed lines: expected from the base's time."""
    from matplotlib.figure import Figure  # here, as importing it takes time

    figure = Figure(figsize=(12, 7), layout="constrained")
    panels = figure.subplots(2, 3)
    labels = {"stellar": "STELLAR", "dense": "dense ViT", "decoder": "decoder alone"}
    for panel, (axis, values) in zip(panels.flat, arms.AXES.items(), strict=False):
        for colour, (arm, label) in enumerate(labels.items()):
            found = [results[arms.point(arm, axis, value)] for value in values]
            base = results[arms.point(arm, axis, arms.BASE[axis])]
            panel.plot(values, [1e3 * p["seconds"] for p in found], "o-", color=f"C{colour}", label=label)
            law = [1e3 * base["seconds"] * p["products"] / base["products"] for p in found]
            panel.plot(values, law, "--", color=f"C{colour}", alpha=0.6, label=f"{label}, by products")
        panel.set(xlabel=axis, ylabel="ms per loss and gradients")
    panels.flat[2].legend(fontsize=8, loc="center", bbox_to_anchor=(0.5, 0.3))  # here the lines leave room
    matched = panels.flat[-1]
    for matching, colour, power, law in (("entropic", "C3", 2, "r²"), ("exact", "C4", 3, "r³")):
        times = {r: 1e3 * results[f"{matching} {r}"]["seconds"] for r in arms.LENGTHS}
        matched.plot(arms.LENGTHS, [*times.values()], "o-", color=colour, label=matching)
        expected = [times[16] * (r / 16) ** power for r in arms.LENGTHS]
        matched.plot(arms.LENGTHS, expected, "--", color=colour, alpha=0.6, label=law)
    matched.set(xlabel="tokens r", ylabel=f"ms to match {2 * arms.SETS} pairs of sets")
    matched.legend(fontsize=8)
    for panel, values in zip(panels.flat, (*arms.AXES.values(), arms.LENGTHS), strict=True):
        panel.set(xscale="log", yscale="log")
        panel.set_xticks(values, map(str, values))
        panel.minorticks_off()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser, file = script_parser(__spec__, __doc__), {"type": paths.path, "metavar": "FILE"}
    again = "file for the numbers, written after each point; started again, the program measures the rest"
    parser.add_argument("--json", required=True, **file, help=again)
    parser.add_argument("--plot", **file, help="picture of the numbers")
    arguments = parser.parse_args()
    check_file(arguments.json)
    check_file(arguments.plot, "--plot")
    path, wanted = arguments.json, points()
    kept = json.loads(path.read_text())["points"] if path.exists() else {}
    results = {name: kept[name] for name in wanted if name in kept}
    for turn, (number, (name, what)) in itertools.product(range(ROUNDS), enumerate(wanted.items(), 1)):
        earlier = results.get(name, {}).get("rounds", [])
        if len(earlier) > turn:
            continue
        found = measure(**what)
        rounds = [*earlier, found["seconds"]]
        results[name] = found | {"seconds": min(rounds), "rounds": rounds}
        path.write_text(json.dumps({"points": results, "machine": machine()}) + "\n")
        at = f"round {turn + 1} of {ROUNDS}, {number}/{len(wanted)}"
        print(f"{at}  {1e3 * found['seconds']:8.1f} ms  {name}", flush=True)
    print(table(results))
    if arguments.plot:
        plot(results, arguments.plot)


if __name__ == "__main__":
    command_line(main)
