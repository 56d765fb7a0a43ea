"""Time the parts of a training step one by one, and their shares of the whole step.

    python -m benchmarks.speed.parts --config=configs/imagenet_b16.py --config.train.batch=64

    --config=FILE       an experiment of configs/, without teacher; any setting of it too
    --repeats=9         timed runs of every part, after two that are not
    --json=FILE         the same numbers for programs, with device, versions and date

Every part gets the inputs that the step gives it: encoder per shape of view, factorization and decoder,
heads and losses, Sinkhorn, matching, views, tokenizer, optimizer. With config.efficiency.microbatches the
parts, and the step that they are compared with, are of one microbatch. Pixels and weights are random.
"""

import sys
from collections.abc import Callable

from sparse_vis.runtime import host

if __name__ == "__main__":
    host.prepare()

from absl import app

from benchmarks.speed import command, step
from sparse_vis.runtime.errors import UserError, command_line


def one_part(part, repeats: int) -> dict:
    """Seconds of the forward pass and, where gradients flow, of forward and backward together."""
    from benchmarks.speed.measure import compiled, timed

    forward = compiled(part.forward, *part.arguments)
    found = {"forward": timed(lambda: forward.call(*part.arguments), repeats).plain(), "xla": forward.xla}
    found["products"] = forward.products
    if part.backward:
        function, arguments = part.both()
        both = compiled(function, *arguments)
        found["both"] = timed(lambda: both.call(*arguments), repeats).plain()
        found["products"] = both.products
    return found


def measure(config, repeats: int, keep: Callable[[dict], None]) -> dict:
    """The step and all parts, as JSON keeps them; `keep` gets what there is after every part."""
    import jax

    from benchmarks.speed.flops import step_flops
    from benchmarks.speed.part_programs import parts
    from benchmarks.speed.synthetic import random_batch, random_state, random_tokenizer, recipe_of

    if config.teacher.enabled:
        raise UserError("parts.py has no teacher; set config.teacher.enabled=False.")
    with config.unlocked():
        config.train.batch //= config.efficiency.microbatches
        config.efficiency.microbatches = 1
    result = step.measure(config, repeats)
    recipe, batch = recipe_of(config), random_batch(config)
    state, tokenizer = random_state(recipe), random_tokenizer(recipe.model.tokenizer)
    flops, found = step_flops(config), {}
    for name, part in parts(recipe, state, batch, tokenizer).items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        found[name] = {**one_part(part, repeats), "flops": flops.get(name, 0.0) * config.train.batch}
        keep(result | {"parts": found})
    jax.clear_caches()
    return result | {"parts": found}


def table(r: dict) -> str:
    """Parts by their share of the step; a share of peak counts FLOPs by formula."""
    whole, lines = r["seconds"]["median"], []
    times = {name: p.get("both", p["forward"])["median"] for name, p in r["parts"].items()}
    for name, seconds in sorted(times.items(), key=lambda item: -item[1]):
        p = r["parts"][name]
        reached = f"{p['flops'] / seconds / r['measured_peak']:.0%}" if p["flops"] else "-"
        both = f"{1e3 * seconds:.1f}" if "both" in p else "-"
        lines.append(
            f"| {name} | {1e3 * p['forward']['median']:.1f} | {both} | {p['flops'] / r['images'] / 1e9:.1f} "
            f"| {reached} | {seconds / whole:.1%} |"
        )
    rest = whole - sum(times.values())
    return "\n".join([
        "| part | forward, ms | forward + backward, ms | GFLOP per image | of measured peak | of the step |",
        "|---|---|---|---|---|---|",
        *lines,
        f"| remainder | | | | | {rest / whole:.1%} |",
    ])  # fmt: skip


def main(_):
    config = command.checked_config()
    result = measure(config, command.REPEATS.value, keep=command.write)
    from benchmarks.speed.throughput import report

    print(f"{result['config']}, {result['target']} target, full training step, {command.device()}:")
    print(report(result))
    print(table(result), flush=True)


if __name__ == "__main__":
    command_line(lambda: app.run(main, flags_parser=command.parser(__doc__)))
