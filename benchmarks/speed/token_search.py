"""Time how `explore --gallery` searches the tokens of an extraction, for one random token at a time.

    python -m benchmarks.speed.token_search

Writes an extraction with random tokens S into a temporary folder: `--images` x `--tokens` x `--width`
numbers, by default 0.6 GB, and as much again for the file that is searched.
"""

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.speed.command import script_parser
from sparse_vis.explore.token_index import TokenIndex
from sparse_vis.runtime.errors import command_line
from sparse_vis.runtime.files import CHECKSUM
from sparse_vis.runtime.tools import positive

SHARD = 10_000  # images


def write_extraction(folder: Path, images: int, tokens: int, width: int) -> dict:
    """Write shards of random tokens; returns as much of a manifest as TokenIndex reads."""
    draw, shards = np.random.default_rng(0), {}
    for start in range(0, images, SHARD):
        rows = min(SHARD, images - start)
        S = draw.standard_normal((rows, tokens * width), np.float32)
        name = f"features-{start:09d}.parquet"
        column = pa.FixedSizeListArray.from_arrays(pa.array(S.reshape(-1)), tokens * width)
        pq.write_table(pa.table({"sparse": column}), folder / name, write_page_checksum=True)
        shards[name] = {"rows": rows}
    return {"outputs": {"sparse": [tokens, width]}, "shards": shards, CHECKSUM: "0" * 64}


def main() -> None:
    parser = script_parser(__spec__, __doc__)
    for flag, default in (("images", 100_000), ("tokens", 16), ("width", 96), ("searches", 20)):
        parser.add_argument(f"--{flag}", type=positive, default=default, metavar="N", help="(%(default)s)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        manifest = write_extraction(Path(folder), given.images, given.tokens, given.width)
        began = time.perf_counter()
        index = TokenIndex(Path(folder), manifest)
        print(f"wrote the file to search in {time.perf_counter() - began:.1f} s", flush=True)
        times, draw = [], np.random.default_rng(1)
        for vector in draw.standard_normal((given.searches, given.width)):
            began = time.perf_counter()
            index.nearest(vector, 8)
            times.append(1000 * (time.perf_counter() - began))
        print(
            f"{given.searches} searches of {given.images} x {given.tokens} tokens of {given.width} numbers: "
            f"median {statistics.median(times):.0f} ms, slowest {max(times):.0f} ms"
        )


if __name__ == "__main__":
    command_line(main)
