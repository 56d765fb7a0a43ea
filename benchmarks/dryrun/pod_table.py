"""Print what a published recipe demands of a pod's hosts, as the table of docs/scaling.md.

    python -m benchmarks.dryrun.pod_table

The numbers come from benchmarks/results. Images/s of TPUs are estimates of the dry runs (the fastest mesh of
each topology); those of 8 GPUs are eight times those measured on one. An ImageNet image has 115 kB (147.9 GB
of ILSVRC2012_img_train.tar / 1,281,167 images); a core decodes as many images/s as input.json has for one
thread. A checkpoint is all of TrainState, of which every host writes an equal part.
"""

import json

import jax

from benchmarks.dryrun.scaling_table import RESULTS
from benchmarks.speed.command import script_parser
from benchmarks.speed.synthetic import random_state, recipe_of
from sparse_vis.config.experiments import experiment
from sparse_vis.runtime.errors import command_line

CHIPS_PER_HOST = 4  # of the slices of v5e and v5p that have several hosts
MB_PER_IMAGE = 147_897.5 / 1_281_167
GPUS = {"b16": "b16_vq_step", "h14": "h14_pixel_step"}
HEADER = (
    "| model | devices | hosts | images/s | hours of the recipe | per host: images/s | MB/s "
    "| cores to decode | checkpoint GB | MB of it per host |"
)


def state_bytes(model: str) -> int:
    """Bytes of the parameters, optimizer and teacher of an ImageNet configuration."""
    recipe = recipe_of(experiment(f"imagenet_{model}"))
    leaves = jax.tree.leaves(jax.eval_shape(lambda: random_state(recipe)))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def speeds() -> dict[tuple[str, str], tuple[int, float]]:
    """Hosts and images/s by model and devices."""
    found: dict[tuple[str, str], tuple[int, float]] = {}
    for file in RESULTS.glob("*_v5*.json"):
        r = json.loads(file.read_text())
        key, speed = (file.stem.split("_")[0], r["topology"]), r["batch"] / r["seconds"]["step"]
        if r["chips"] >= 64:
            found[key] = max(found.get(key, (0, 0.0)), (r["chips"] // CHIPS_PER_HOST, speed))
    for model, file in GPUS.items():
        one = json.loads((RESULTS / "h100" / f"{file}.json").read_text())["images_per_second"]
        found[model, "8 x H100"] = (1, 8 * one)
    return found


def row(model: str, devices: str, hosts: int, speed: float, decoded: float, saved: int) -> str:
    """A row of Markdown; `decoded`: images/s that a core decodes. `saved`: bytes of a checkpoint."""
    train, each = experiment(f"imagenet_{model}").train, speed / hosts
    return (
        f"| {model} | {devices} | {hosts} | {speed:.0f} | {train.steps * train.batch / speed / 3600:.1f} "
        f"| {each:.0f} | {each * MB_PER_IMAGE:.0f} | {each / decoded:.1f} "
        f"| {saved / 1e9:.1f} | {saved / hosts / 1e6:.0f} |"
    )


def main() -> None:
    script_parser(__spec__, __doc__).parse_args()
    pipeline = json.loads((RESULTS / "input.json").read_text())["pipeline"]
    one = next(r for r in pipeline if (r["workers"], r["threads"]) == (0, 1))
    print(HEADER)
    print("|---" * (HEADER.count("|") - 1) + "|")
    saved = {model: state_bytes(model) for model in ("b16", "l16", "h14")}
    for (model, devices), (hosts, speed) in sorted(speeds().items()):
        print(row(model, devices, hosts, speed, one["images_per_second"], saved[model]))


if __name__ == "__main__":
    command_line(main)
