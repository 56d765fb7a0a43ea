"""How the cost of training grows with batch, tokens, prototypes, image size and views, and that of matching.

    python -m benchmarks.growth.growth --json=benchmarks/results/growth.json --plot=docs/images/growth.png

Loss and gradients of a small STELLAR (width 128, 4 layers), beside a dense ViT of the same size on the same
views (no queries, no factorization, no prototype heads; it decodes its own patch features) and the decoder
alone. The expected law is that of the counted matrix products. A time is the least of 5 calls in each of 6
rounds through all points, as machines that are shared are slow for minutes at a time.
"""

import functools
import itertools
import json

from sparse_vis.runtime import host, paths

if __name__ == "__main__":
    host.prepare()

import jax

from benchmarks.growth import growth_arms as arms
from benchmarks.growth.growth_report import plot, table
from benchmarks.speed.command import check_file, machine, script_parser
from benchmarks.speed.measure import compiled, timed
from sparse_vis.runtime.errors import command_line

ROUNDS = 6


def points() -> dict[str, dict]:
    """Name -> what is measured there: an arm or a matching, and its sizes."""
    found = {}
    for axis, values in arms.AXES.items():
        for value, arm in itertools.product(values, arms.NEEDS):
            found[arms.point(arm, axis, value)] = {"arm": arm, "sizes": arms.BASE | {axis: value}}
    for matching, length in itertools.product(arms.MATCHINGS, arms.LENGTHS):
        found[f"{matching} {length}"] = {"arm": matching, "sizes": {"tokens": length}}
    return found


@functools.cache
def program_of(arm: str, **sizes: int) -> tuple:
    """The compiled program of a point, and its arguments; compiled once for all rounds."""
    function, arguments = arms.ARMS[arm](**sizes)
    return compiled(function, *arguments), arguments


def measure(arm: str, sizes: dict) -> dict:
    """Seconds and products of one point; of a matching, also which partners it found."""
    program, arguments = program_of(arm, **sizes)
    timing = timed(lambda: program.call(*arguments), repeats=5, warmup=1)
    found = {"seconds": timing["min"], "products": program.products}
    if arm in arms.MATCHINGS:
        found["partners"] = jax.device_get(program.call(*arguments)).tolist()
    return found


def main() -> None:
    parser, file = script_parser(__spec__, __doc__), {"type": paths.path, "metavar": "FILE"}
    again = "what is measured is kept there point by point; started again, it does the rest"
    parser.add_argument("--json", required=True, **file, help=again)
    parser.add_argument("--plot", **file, help="the same as a picture")
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
