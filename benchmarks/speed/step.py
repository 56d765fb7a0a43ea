r"""Time the full training step on this machine: views, forward, targets, losses, gradients, update.

    python -m benchmarks.speed.step --config=configs/imagenet_b16.py --config.train.batch=256
    python -m benchmarks.speed.step --config=configs/imagenet_h14.py --config.train.batch=64 \
        --config.model.target=pixel --config.loss.reconstruction=10

    --config=FILE       an experiment of configs/, with any setting changed:
    --config.efficiency.dtype=float32,
                        --config.efficiency.microbatches=4, ... --config.train.batch is the batch of a step
    --repeats=9         timed steps, after two that are not
    --json=FILE         file for the numbers, with device, versions and date

No files are needed: pixels are random, and so are all weights, also those of the VQ tokenizer.
"""

from sparse_vis.runtime import host

if __name__ == "__main__":
    host.prepare()

import jax
import numpy as np

from benchmarks.speed import command
from benchmarks.speed.flops import step_flops
from benchmarks.speed.measure import compiled, report, throughput
from benchmarks.speed.synthetic import random_batch, random_state, random_tokenizer, recipe_of
from sparse_vis.runtime.errors import UserError
from sparse_vis.train.mesh import make_mesh
from sparse_vis.train.step import compile_step


def measure(config, repeats: int) -> dict:
    """All numbers of the step, for JSON. Raises UserError if a step was not finite."""
    recipe, batch = recipe_of(config), random_batch(config)
    state, tokenizer = random_state(recipe), random_tokenizer(recipe.model.tokenizer)
    seed = np.uint32(config.seed)
    mesh = make_mesh(config.efficiency.mesh)
    program = compiled(compile_step(recipe, mesh, state), state, batch, tokenizer, seed)
    arguments = (state, batch, tokenizer, seed)
    state, batch, tokenizer, seed = jax.device_put(arguments, program.call.input_shardings[0])
    metrics = {}

    def step():
        nonlocal state, metrics
        # The old state cannot be used any more, as its memory is reused.
        state, metrics = program.call(state, batch, tokenizer, seed)
        return metrics

    flops, dtype = sum(step_flops(config).values()), config.efficiency.dtype
    numbers = throughput(program, step, repeats, config.train.batch, flops, dtype)
    if metrics["bad_steps"]:
        raise UserError(f"{int(metrics['bad_steps'])} of the steps were not finite; use another dtype.")
    return {
        "config": config.name, "target": config.model.target, "microbatches": config.efficiency.microbatches,
        "remat": config.efficiency.remat, "attention": config.efficiency.attention,
        **numbers,
    }  # fmt: skip


def heading(r: dict) -> str:
    """The first line of the report: what was measured, and on which device."""
    return f"{r['config']}, {r['target']} target, full training step, {command.device()}:"


def main(given):
    result = measure(command.checked_config(given), given.repeats)
    print(f"{heading(result)}\n{report(result)}", flush=True)
    command.write_json(given.json, result)


if __name__ == "__main__":
    command.run(main, __doc__)
