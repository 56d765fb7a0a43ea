"""Time saving a checkpoint on a disk or in a bucket: how long training waits for it, and how long it takes.

    python -m benchmarks.speed.save --config=quickstart --output=gs://BUCKET/try

Nothing is trained: the state of step 0 is saved repeatedly, each time after the last save has ended. The
first save does not count. The last checkpoint stays in the folder.
"""

import statistics
import time

import jax
import numpy as np

from sparse_vis.config.arguments import read_config
from sparse_vis.runtime.errors import UserError, command_line
from sparse_vis.runtime.paths import AnyPath, in_bucket
from sparse_vis.runtime.tools import Parser, positive
from sparse_vis.train import checkpoint
from sparse_vis.train.recipe import build_recipe
from sparse_vis.train.step import initial_state


def sizes(folder: AnyPath) -> list[int]:
    """Bytes of every file or object below a folder."""
    if in_bucket(folder):
        return [size for size, _ in folder.objects().values()]
    return [path.stat().st_size for path in folder.rglob("*") if path.is_file()]


def main() -> None:
    parser = Parser(prog=f"python -m {__spec__.name}", description=__doc__)
    parser.add_argument("--config", default="quickstart", help="experiment or file (%(default)s)")
    parser.add_argument("--output", help="an empty folder, which may be in a bucket")
    parser.add_argument("--repeats", type=positive, default=5, metavar="N", help="timed saves (%(default)s)")
    given = parser.parse_args()
    folder = given.output / checkpoint.FOLDER
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"--output={given.output} holds checkpoints; give an empty folder.")
    config = read_config(given.config)
    checkpoint.prepare(given.output)
    state = jax.jit(lambda seed: initial_state(build_recipe(config), seed, None))(np.uint32(0))
    manager, waits, whole = checkpoint.open_manager(given.output, keep=1), [], []
    for step in range(1 + given.repeats):
        began = time.perf_counter()
        checkpoint.save(manager, state.replace(step=np.int32(step)), {"next_index": 0}, config)
        waits.append(time.perf_counter() - began)
        checkpoint.finish(manager)
        whole.append(time.perf_counter() - began)
    saved = sizes(folder / str(given.repeats))
    print(
        f"a checkpoint of {sum(saved) / 1e6:.1f} MB in {len(saved)} files: training waits "
        f"{statistics.median(waits[1:]):.2f} s, complete after {statistics.median(whole[1:]):.2f} s"
    )


if __name__ == "__main__":
    command_line(main)
