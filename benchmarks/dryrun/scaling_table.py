"""Print the dry runs in benchmarks/results as the table of docs/scaling.md.

    python -m benchmarks.dryrun.scaling_table

Rows are sorted by model, then by chips.
"""

import json
import pathlib

from benchmarks.speed.command import script_parser
from sparse_vis.config.settings import FORMER
from sparse_vis.runtime.errors import command_line

RESULTS = pathlib.Path(__file__).resolve().parent.parent / "results"
GIB = 2**30
REMAT = FORMER["efficiency.remat"]  # older files have former names of the values
HEADER = (
    "| model, chips | mesh | remat, microbatches | memory GiB | of chip | TFLOPs per chip (per image) "
    "| main memory GB | step ms: chip + links | images/s | share of peak "
    "| all-reduce, all-gather, reduce-scatter MB | compiled in |"
)


def row(name: str, r: dict) -> str:
    """One dry run as a row of Markdown; `name` is that of its file, MODEL_TOPOLOGY."""
    m, s, e = r["memory"], r["seconds"], r["efficiency"]
    per_image = r["flops"] * r["chips"] / r["batch"]
    sent = [
        sum(c["bytes"] for c in r["collectives"] if c["kind"] == kind) / 1e6
        for kind in ("all-reduce", "all-gather", "reduce-scatter")
    ]
    return (
        f"| {name.split('_')[0]}, {r['topology']} | {r['mesh']['data']}, {r['mesh']['fsdp']} "
        f"| {REMAT.get(e['remat'], e['remat'])}, {e['microbatches']} | {m['peak'] / GIB:.2f} "
        f"| {m['peak'] / m['of_chip']:.0%} | {r['flops'] / 1e12:.1f} ({per_image / 1e12:.3f}) "
        f"| {r['bytes'] / 1e9:.0f} | {1e3 * s['chip']:.0f} + {1e3 * s['links']:.0f} "
        f"| {r['batch'] / s['step']:.0f} | {r['share_of_peak']:.0%} "
        f"| {', '.join(f'{size:.0f}' for size in sent)} | {r['compile_seconds'] / 60:.0f} min |"
    )


def main() -> None:
    script_parser(__spec__, __doc__).parse_args()
    found = {file.stem: json.loads(file.read_text()) for file in RESULTS.glob("*_v[456]*.json")}
    kinds = ((name.split("_")[0], r["topology"].split(":")[0], r["chips"], name) for name, r in found.items())
    print(HEADER)
    print("|---" * (HEADER.count("|") - 1) + "|")
    for *_, name in sorted(kinds):
        print(row(name, found[name]))


if __name__ == "__main__":
    command_line(main)
