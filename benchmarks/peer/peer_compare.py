"""Interleaved pairs of two programs: times, their ratio and its spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import jax
import torch

from benchmarks.speed.measure import Timing, matmul_peak, quartile_spread


def peaks(repeats: int = 9) -> dict[str, float]:
    """FLOP/s of large float32 matrix products in this run, by JAX and by PyTorch: the best of each."""
    side, seconds = 2048, []
    x, w = torch.randn(side, side), torch.randn(side, side)
    for _ in range(2 + repeats):
        began = time.perf_counter()
        x @ w
        seconds.append(time.perf_counter() - began)
    return {"ours": matmul_peak("float32", repeats), "peer": 2 * side**3 / min(seconds[2:])}


def compare(ours: Callable, theirs: Callable, pairs: int, images: int) -> dict:
    """Times of both, in pairs whose order changes.

    A timed run follows one of its own side that does not count, as in a loop, where a step follows a step:
    right after PyTorch's runs, ours have to ask the kernel for their memory anew.

    Args:
        ours, theirs: without arguments; ours returns JAX arrays, which are waited for.
        pairs: of runs. images: per run.

    Returns:
        `ratio`: median over pairs of theirs / ours, above 1 where ours is faster; `spread` of the ratios
        (quartiles over median); `ratios`; `ours`, `peer`: times and images per second.
    """
    seconds = {"ours": [], "peer": []}
    run = {"ours": lambda: jax.block_until_ready(ours()), "peer": theirs}
    for pair in range(pairs):
        for name in ("ours", "peer") if pair % 2 else ("peer", "ours"):
            run[name]()
            began = time.perf_counter()
            run[name]()
            seconds[name].append(time.perf_counter() - began)
    timings = {name: Timing(tuple(values)) for name, values in seconds.items()}
    ratios = [b / a for a, b in zip(timings["ours"].seconds, timings["peer"].seconds, strict=True)]
    return {
        "images": images, "ratio": statistics.median(ratios), "spread": quartile_spread(tuple(ratios)),
        "ratios": ratios,
        **{n: {**t.plain(), "images_per_second": images / t.median} for n, t in timings.items()},
    }  # fmt: skip


def report(name: str, r: dict, flops: dict[str, float], peak: dict[str, float]) -> str:
    """The comparison as text; both shares of peak are of the faster library's matrix products.

    `flops` per image: of "ours" and of the "peer".
    """
    most, lines = max(peak.values()), []
    for who in ("ours", "peer"):
        rate, s = r[who]["images_per_second"], r[who]
        lines.append(
            f"  {who}  {1e3 * s['median']:8.1f} ms (least {1e3 * s['min']:.1f}), {rate:.3f} images/s, "
            f"{rate * flops[who] / most:.0%} of {most / 1e9:.0f} GFLOP/s measured"
        )
    apart = ", ".join(f"{key} {value:.0e}" for key, value in r["differences"].items())
    return "\n".join([
        f"{name}, {r['images']} images, {len(r['ratios'])} pairs: ratio {r['ratio']:.3f}, "
        f"quartiles {r['spread']:.1%} apart; relative differences: {apart}",
        *lines,
    ])  # fmt: skip
