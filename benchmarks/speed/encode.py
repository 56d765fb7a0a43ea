"""Time encoding on this machine: images to CLS, S, U, L and Z, no gradient.

    python -m benchmarks.speed.encode --config=configs/imagenet_b16.py --images=256

    --config=FILE       an experiment of configs/, with any setting changed: --config.efficiency.dtype=float32
    --images=64         images per call
    --repeats=9         timed calls, after two that are not
    --json=FILE         file for the numbers, with device, versions and date

Images are random pixels on the device, and weights are random.
"""

import functools

from sparse_vis.runtime import host

if __name__ == "__main__":
    host.prepare()

import jax
from absl import flags

from benchmarks.speed import command
from benchmarks.speed.flops import encode_flops
from benchmarks.speed.measure import compiled, report, throughput
from sparse_vis.build import build_model
from sparse_vis.models.stellar import init_params


def encode(model, pixels):
    """Tokens and Factors of images (B, H, W, 3) in [0, 1]; a method of Stellar for `apply`."""
    tokens = model.encode(pixels)
    return tokens, model.factorize(tokens)


def measure(config, images: int, repeats: int) -> dict:
    """All numbers of encoding `images` at a time, for JSON."""
    model, size = build_model(config), config.model.image_size
    variables = {"params": init_params(model, jax.random.key(config.seed))}
    pixels = jax.random.uniform(jax.random.key(1), (images, size, size, 3))
    program = compiled(functools.partial(model.apply, method=encode), variables, pixels)
    flops, dtype = encode_flops(config), config.efficiency.dtype
    numbers = throughput(program, lambda: program.call(variables, pixels), repeats, images, flops, dtype)
    return {"config": config.name, "attention": config.efficiency.attention, **numbers}


def main(given):
    result = measure(command.checked_config(given), given.images, given.repeats)
    print(f"{result['config']}, encode only, {command.device()}:\n{report(result)}", flush=True)
    command.write_json(given.json, result)


if __name__ == "__main__":
    flags.DEFINE_integer("images", 64, "Images per call.", lower_bound=1)
    command.run(main, __doc__)
