"""Cause faults, and count how they end: python -m benchmarks.faults [--only=kills,flips] [--seed=0]

    kills      SIGKILL at random moments of a training, and during a save
    two        each command that writes, started twice at a time in one folder
    disk       each command that writes, on a disk that gets full (needs root, to mount a disk in memory)
    flips      flipped bits, truncated and missing files, in all files that we write and read again
    pictures   damaged pictures of six formats
    malformed  settings, manifests and other JSON with impossible values
    hostile    torch files that hold no weights, or try to run code

A fault must be refused in one sentence or be harmless, that is, change nothing. All else is wrong: changed
results without a message, a traceback, lost work. Ends with status 1 if anything was wrong.
"""

import argparse
import os
import pathlib
import random
import tempfile
import time

from sparse_vis.runtime import host

if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    host.prepare()

from benchmarks.faults import commands, flips, foreign, kills, malformed
from benchmarks.faults.tally import Part, Tally
from benchmarks.speed.command import check_file, script_parser, write_json
from sparse_vis.runtime.errors import UserError, command_line

PARTS = {
    "kills": kills.campaign, "two": commands.two_at_a_time, "disk": commands.full_disk,
    "flips": flips.campaign, "pictures": foreign.pictures, "malformed": malformed.campaign,
    "hostile": foreign.torch_files,
}  # fmt: skip


def parts(text: str) -> list[str]:
    """argparse `type` of names of PARTS."""
    names = text.split(",")
    if unknown := set(names) - set(PARTS):
        raise argparse.ArgumentTypeError(f"{min(unknown)!r} is unknown; choose from {','.join(PARTS)}")
    return names


def main() -> None:
    parser = script_parser(__spec__, __doc__)
    add = parser.add_argument
    add("--only", type=parts, default=tuple(PARTS), help="parts, separated by commas (all)")
    add("--seed", type=int, default=0, help="seed of all random numbers (%(default)s)")
    add("--scale", type=float, default=1.0, help="factor for the number of faults (%(default)s)")
    add("--json", metavar="FILE", help="file for the numbers, with versions, machine and date")
    given = parser.parse_args()
    check_file(given.json)
    if "disk" in given.only and os.geteuid():
        raise UserError("the part disk mounts file systems, which only root can; leave it out of --only.")
    tally, seconds = Tally(), {}
    for name in given.only:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="sparse_vis_faults_") as folder:
            PARTS[name](Part(pathlib.Path(folder), tally, random.Random(given.seed), given.scale))
        seconds[name] = round(time.perf_counter() - began)
    print(tally.table())
    rows = {kind: vars(row) for kind, row in tally.rows.items()}
    write_json(given.json, {"seed": given.seed, "scale": given.scale, "seconds": seconds, "faults": rows})
    if wrong := tally.total().wrong:
        raise UserError(f"{len(wrong)} faults went wrong; the lines above that begin with WRONG say which.")


if __name__ == "__main__":
    command_line(main)
