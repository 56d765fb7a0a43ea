"""Timing, compilation and throughput of programs; peak and memory of the device."""

import dataclasses
import resource
import statistics
import sys
import time
from collections.abc import Callable

import jax
from jax.interpreters.partial_eval import dce_jaxpr

from benchmarks.dryrun.chips import CHIPS
from benchmarks.speed.flops import products
from sparse_vis.runtime.host import CPU_COMPILER_OPTIONS


def timing(seconds: list[float]) -> dict:
    """Median, least and spread of times; the spread is (upper - lower quartile) / median."""
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive") if seconds[1:] else 3 * seconds
    return {"median": middle, "min": min(seconds), "spread": (high - low) / middle, "seconds": seconds}


def timed(call: Callable, repeats: int = 9, warmup: int = 2) -> dict:
    """`timing` of `call()` until the arrays that it returns are ready, after `warmup` calls."""
    seconds = []
    for _ in range(warmup + repeats):
        began = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - began)
    return timing(seconds[warmup:])


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled function: `call` it like the function."""

    call: Callable
    compile_seconds: float  # of tracing and compilation
    products: float  # FLOPs of matrix products and convolutions, with all iterations and recomputation
    products_once: float  # the same with every loop body counted once
    xla: float  # FLOPs by XLA before optimization: loop bodies once, elementwise work too
    temporaries: int  # bytes that the program needs in addition to its arguments and outputs

    def plain(self) -> dict:
        """For JSON."""
        return {k.name: getattr(self, k.name) for k in dataclasses.fields(self) if k.name != "call"}


def compiled(function: Callable, *arguments, donate: tuple[int, ...] = ()) -> Program:
    """Compile as training does, and count FLOPs.

    Args:
        function: of arrays; jitted here unless it is already. arguments: arrays or ShapeDtypeStructs.
        donate: positions of arguments whose memory is reused.
    """
    began = time.perf_counter()
    jitted = function if hasattr(function, "trace") else jax.jit(function, donate_argnums=donate)
    traced = jitted.trace(*arguments)
    # Without what no output needs, such as gradients of pixels, which XLA leaves out too.
    used, _ = dce_jaxpr(traced.jaxpr.jaxpr, [True] * len(traced.jaxpr.jaxpr.outvars))
    lowered = traced.lower()
    executable = lowered.compile(CPU_COMPILER_OPTIONS if jax.default_backend() == "cpu" else None)
    return Program(
        call=executable,
        compile_seconds=time.perf_counter() - began,
        products=products(used),
        products_once=products(used, loops=False),
        xla=(lowered.cost_analysis() or {}).get("flops", 0.0),
        temporaries=executable.memory_analysis().temp_size_in_bytes,
    )


def matmul_peak(dtype: str, repeats: int = 9) -> float:
    """Best FLOP/s, of `repeats`, of large square matrix products of random numbers."""
    side, count = (2048, 2) if jax.default_backend() == "cpu" else (8192, 16)
    x, w = (jax.random.normal(jax.random.key(i), (side, side), dtype) for i in range(2))
    w = w / side**0.5  # so that repeated products neither grow nor vanish

    @jax.jit
    def chain(x, w):
        return jax.lax.fori_loop(0, count, lambda _, x: x @ w, x)

    return 2 * side**3 * count / timed(lambda: chain(x, w), repeats)["min"]


def stated_peak(kind: str, dtype: str) -> float | None:
    """The vendor's bf16 FLOP/s of a device kind; None if it is not known, or for another dtype."""
    known = [chip.flops for chip in CHIPS.values() if chip.kind in kind]
    return known[0] if known and dtype == "bfloat16" else None


def peak_memory() -> int:
    """Most bytes in use since the process started, on the device, or on CPU in resident memory."""
    stats = jax.local_devices()[0].memory_stats()
    if stats:
        return stats["peak_bytes_in_use"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def throughput(program: Program, call: Callable, repeats: int, images: int, flops: float, dtype: str) -> dict:
    """Time a program, and compare it with the device's peak.

    Args:
        call: runs the program, without arguments. repeats: timed runs, of products too. images: per call.
        flops: per image, by formula; shares of peak refer to these.
        dtype: of the computation. The peak of its matrix products is measured before and after; the better
            one counts, as a shared machine is not always equally fast.

    Returns:
        The numbers, for JSON; `stated_peak` and its share are None if the vendor's peak is not known.
    """
    before, seconds = matmul_peak(dtype, repeats), timed(call, repeats)
    rate = images / seconds["median"]
    stated = stated_peak(jax.devices()[0].device_kind, dtype)
    measured = max(before, matmul_peak(dtype, repeats))
    achieved = rate * flops / jax.device_count()
    return {
        "images": images, "dtype": dtype, "seconds": seconds, "images_per_second": rate,
        "flops_per_image": flops, "program": program.plain(), "peak_memory": peak_memory(),
        "stated_peak": stated, "measured_peak": measured, "share_of_measured": achieved / measured,
        "share_of_stated": achieved / stated if stated else None,
    }  # fmt: skip


def report(r: dict) -> str:
    """The numbers of `throughput` as text."""
    s, p, executed = r["seconds"], r["program"], r["program"]["products"] / r["images"]
    stated = "no stated peak"
    if r["stated_peak"]:
        stated = f"{r['share_of_stated']:.1%} of the stated {r['stated_peak'] / 1e12:.0f} TFLOP/s"
    return "\n".join([
        f"  time         {1e3 * s['median']:.1f} ms median of {len(s['seconds'])} (least "
        f"{1e3 * s['min']:.1f}, quartiles {s['spread']:.1%} apart), {r['images']} images, {r['dtype']}",
        f"  throughput   {r['images_per_second']:.2f} images/s",
        f"  FLOPs        {r['flops_per_image'] / 1e9:.1f} G per image by formula; the program's products "
        f"{executed / 1e9:.1f} G ({executed / r['flops_per_image'] - 1:+.1%})",
        f"               with loops counted once: products {p['products_once'] / 1e9:.1f} G, XLA's analysis "
        f"{p['xla'] / 1e9:.1f} G",
        f"  of peak      {stated}; {r['share_of_measured']:.1%} of {r['measured_peak'] / 1e12:.3f} TFLOP/s "
        "measured",
        f"  memory       {r['peak_memory'] / 2**30:.2f} GiB at most; the program's temporaries "
        f"{p['temporaries'] / 2**30:.2f} GiB",
        f"  compiled in  {p['compile_seconds']:.1f} s",
    ])  # fmt: skip
