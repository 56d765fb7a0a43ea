"""Faults on purpose, and what became of them: python -m benchmarks.faults [--only=kills,flips] [--seed=0]

    kills      SIGKILL at random moments of a training, and in the middle of a save
    two        each command that writes, twice at a time into one folder
    disk       each command that writes, on a disk that gets full (mounts one in memory: needs root)
    flips      flipped bits, cut and missing files: all that we write and read again
    pictures   damaged pictures of six formats
    malformed  settings, manifests and other JSON that make no sense
    hostile    torch files that hold no weights, or ask to run code

A fault is refused in one sentence, or harmless: all is as without it. Anything else is wrong: other results
without a word, a traceback, lost work. Ends with status 1 if anything was wrong.
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
    """Names of PARTS."""
    names = text.split(",")
    if unknown := set(names) - set(PARTS):
        raise argparse.ArgumentTypeError(f"{min(unknown)!r} is unknown; choose from {','.join(PARTS)}")
    return names


def main() -> None:
    parser = script_parser(__spec__, __doc__)
    add = parser.add_argument
    add("--only", type=parts, default=tuple(PARTS), help="parts, with commas between (all)")
    add("--seed", type=int, default=0, help="of all that is random (%(default)s)")
    add("--scale", type=float, default=1.0, help="of the number of faults (%(default)s)")
    add("--json", metavar="FILE", help="the same numbers for programs, with versions, machine and date")
    given = parser.parse_args()
    check_file(given.json)
    if "disk" in given.only and os.geteuid():
        raise UserError("the part disk mounts file systems, as root only can; leave it out of --only.")
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
