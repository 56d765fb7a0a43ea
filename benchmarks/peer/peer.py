"""Time our encoder and full training step against a PyTorch model of the same sizes, in turns.

    pip install "transformers==5.24.*" "torch==2.13.*"      # both only for this
    python -m benchmarks.peer.peer --config=configs/imagenet_b16.py --json=FILE

    --config=FILE       an experiment of configs/; always the pixel target, float32 and no teacher
    --encode_images=8   images per call of the encoder
    --step_images=2     images per training step
    --repeats=9         pairs of timed runs, the order changing from pair to pair
    --compile=True      torch.compile for the peer, which needs a C++ compiler; --compile=False: eager
    --json=FILE         file for the numbers, with device, versions and date

The peer (peer_model.py) wraps transformers' ViT layers and has our weights; features and losses of both are
compared before anything is timed. Both steps get the same views as arrays, and the time to make them is not
counted. The matrix products of one layer are also timed alone, as their ratio limits the others. The last
line is JSON: products_ratio, encode_ratio and step_ratio, each the peer's time / ours, and their spreads.
"""

import functools
import json
import time
from collections.abc import Callable

from sparse_vis.runtime import host

if __name__ == "__main__":
    host.prepare()

import jax
import numpy as np
import torch
from absl import flags

from benchmarks.peer.peer_model import Peer, Step, torch_views, transplant
from benchmarks.speed import command
from benchmarks.speed.encode import encode
from benchmarks.speed.flops import encode_flops, kernels, sequence, step_flops
from benchmarks.speed.measure import compiled, matmul_peak, timed, timing
from benchmarks.speed.synthetic import random_batch, random_state, recipe_of
from sparse_vis.runtime.errors import UserError
from sparse_vis.train.step import train_step
from sparse_vis.views.make import make_views

ENCODE = flags.DEFINE_integer("encode_images", 8, "Images per call of the encoder.", lower_bound=1)
STEP = flags.DEFINE_integer("step_images", 2, "Images per training step.", lower_bound=1)
COMPILE = flags.DEFINE_bool("compile", True, "torch.compile for the peer.")
TOLERANCE = 1e-3  # of float32 rounding, relative, through all layers of B/16
SIDES = ("ours", "peer")


def prepared(config):
    """The configuration, changed to what both sides compute. Raises UserError."""
    if config.loss.matching != "entropic" or config.loss.sinkhorn_epsilon:
        raise UserError("the peer has the default losses only; leave config.loss as it is.")
    with config.unlocked():
        config.model.target, config.efficiency.dtype, config.teacher.enabled = "pixel", "float32", False
        config.loss.reconstruction = config.loss.reconstruction if config.loss.reconstruction > 1 else 10.0
        config.optimizer.schedule = "constant"
        config.train.batch = STEP.value
    return config


def same(name: str, ours, theirs) -> float:
    """Largest difference / our largest number. Raises UserError if it is more than rounding."""
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    difference = float(np.abs(ours - theirs).max() / np.abs(ours).max())
    if not difference < TOLERANCE:
        raise UserError(f"the peer's {name} differs by {difference:.1e}; do not compare the times.")
    return difference


def products(config, length: int):
    """A layer's products with its kernels, for the images of an encode call with `length` tokens each.

    Returns, as `encoders` and `steps` do, our function and the peer's, both without arguments, and the
    differences of their first results.
    """
    linear, rows = torch.nn.functional.linear, ENCODE.value * length
    d, mlp = config.model.width, config.model.mlp_dim
    sizes = ((d, 3 * d), (d, d), (d, mlp), (mlp, d))
    # PyTorch keeps kernels as (out, in).
    pairs = [(torch.randn(rows, i), torch.randn(o, i)) for i, o in sizes]
    arrays = jax.device_put([(x.numpy(), w.numpy().T.copy()) for x, w in pairs])
    program = compiled(lambda pairs: [x @ w for x, w in pairs], arrays).call
    differences = {"product": same("product", program(arrays)[0], linear(*pairs[0]))}
    return (lambda: program(arrays)), (lambda: [linear(x, w) for x, w in pairs]), differences


def encoders(config, recipe, params, peer):
    """Both encoders, compared; returns as `products`."""
    size = config.model.image_size
    pixels = jax.random.uniform(jax.random.key(1), (ENCODE.value, size, size, 3))
    variables = {"params": params}
    ours = compiled(functools.partial(recipe.model.apply, method=encode), variables, pixels).call
    theirs = torch.compile(peer.encode) if COMPILE.value else peer.encode
    channels_first = torch.from_numpy(jax.device_get(pixels).copy()).permute(0, 3, 1, 2).contiguous()

    def peer_encode():
        with torch.inference_mode():
            return theirs(channels_first)

    (tokens, factors), found = ours(variables, pixels), peer_encode()
    differences = {"S": same("S", tokens.S, found[1]), "Z": same("Z", factors.Z, found[4])}
    return (lambda: ours(variables, pixels)), peer_encode, differences


def steps(config, recipe, state, peer):
    """Both training steps, compared; returns as `products`."""
    views = jax.jit(functools.partial(make_views, spec=recipe.views))(jax.random.key(3), random_batch(config))
    program = compiled(
        lambda state, views: train_step(recipe, state, views, view=lambda v: v), state, views, donate=(0,)
    ).call
    step, arrays = Step(peer, recipe.loss, config.optimizer, compile=COMPILE.value), torch_views(views)

    def ours():
        nonlocal state
        state, metrics = program(state, views)
        return metrics

    total, norm = step(*arrays)
    metrics = ours()
    differences = {
        "total": same("total loss", metrics["total"], total),
        "gradient_norm": same("gradient norm", metrics["gradient_norm"], norm),
    }
    return ours, (lambda: step(*arrays)), differences


def peaks() -> dict[str, float]:
    """Best FLOP/s of large float32 matrix products in this run, by JAX and by PyTorch."""
    side = 2048
    x, w = torch.randn(side, side), torch.randn(side, side)
    return {"ours": matmul_peak("float32"), "peer": 2 * side**3 / timed(lambda: (x @ w).numpy())["min"]}


def compare(ours: Callable, theirs: Callable, pairs: int, images: int) -> dict:
    """Times of both, in pairs of alternating order.

    Each timed run follows an untimed one of the same side, as in training, because our first run after one of
    PyTorch has to request its memory from the operating system again.

    Returns:
        `ratio`, the median over pairs of their time / ours; `spread` of the ratios (difference of quartiles /
        median); `ratios`; and `ours` and `peer`, times and images per second.
    """
    seconds = {side: [] for side in SIDES}
    run = {"ours": lambda: jax.block_until_ready(ours()), "peer": theirs}
    for pair in range(pairs):
        for side in SIDES if pair % 2 else SIDES[::-1]:
            run[side]()
            began = time.perf_counter()
            run[side]()
            seconds[side].append(time.perf_counter() - began)
    times = {side: timing(values) for side, values in seconds.items()}
    ratios = timing([b / a for a, b in zip(*seconds.values(), strict=True)])
    return {
        "images": images, "ratio": ratios["median"], "spread": ratios["spread"], "ratios": ratios["seconds"],
        **{side: t | {"images_per_second": images / t["median"]} for side, t in times.items()},
    }  # fmt: skip


def report(name: str, r: dict, flops: dict[str, float], peak: dict[str, float]) -> str:
    """The comparison as text; both shares of peak refer to the faster library's matrix products."""
    apart = ", ".join(f"{key} {value:.0e}" for key, value in r["differences"].items())
    most, lines = max(peak.values()), [
        f"{name}, {r['images']} images, {len(r['ratios'])} pairs: ratio {r['ratio']:.3f}, "
        f"quartiles {r['spread']:.1%} apart; relative differences: {apart}",
    ]  # fmt: skip
    for side in SIDES:
        rate, s = r[side]["images_per_second"], r[side]
        lines.append(
            f"  {side}  {1e3 * s['median']:8.1f} ms (least {1e3 * s['min']:.1f}), {rate:.3f} images/s, "
            f"{rate * flops[side] / most:.0%} of {most / 1e9:.0f} GFLOP/s measured"
        )
    return "\n".join(lines)


def main(given):
    config = prepared(command.checked_config(given))
    recipe, peer = recipe_of(config), Peer(config)
    state = random_state(recipe)
    transplant(state.params, peer)
    m, scanned = config.model, config.copy_and_resolve_references()
    scanned.efficiency.unroll = 1  # then its last layer computes all tokens of every view, as the peer's
    length = sequence(m, (m.image_size // m.patch) ** 2)
    result = {"config": config.name, "compile": COMPILE.value, "peaks": peaks()}
    flops = {
        "products": dict.fromkeys(SIDES, kernels(length, m.width, m.mlp_dim)),
        "encode": dict.fromkeys(SIDES, encode_flops(config)),
        "step": {side: sum(step_flops(c).values()) for side, c in zip(SIDES, (config, scanned), strict=True)},
    }
    for name, make, images in (
        ("products", lambda: products(config, length), ENCODE.value),
        ("encode", lambda: encoders(config, recipe, state.params, peer), ENCODE.value),
        ("step", lambda: steps(config, recipe, state, peer), STEP.value),
    ):
        print(f"{name}: compiling ...", flush=True)
        ours, theirs, differences = make()
        result[name] = compare(ours, theirs, given.repeats, images) | {"differences": differences}
        print(report(name, result[name], flops[name], result["peaks"]), flush=True)
    command.write_json(given.json, result)
    last = {f"{name}_{key}": result[name][key] for name in flops for key in ("ratio", "spread")}
    print(json.dumps(last), flush=True)


if __name__ == "__main__":
    command.run(main, __doc__)
