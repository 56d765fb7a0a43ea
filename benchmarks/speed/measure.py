"""What all benchmarks share: timing, compilation, the device's peak and memory."""

from __future__ import annotations

import dataclasses
import resource
import statistics
import sys
import time
from collections.abc import Callable

import jax

from benchmarks.dryrun.chips import CHIPS
from benchmarks.speed.flops import products
from sparse_vis.runtime.host import CPU_COMPILER_OPTIONS

# bf16 operations per second without sparsity, from the vendors' pages; keys are parts of JAX's device kinds.
STATED = {
    "H100 80GB HBM3": CHIPS["h100"].flops, "H200": CHIPS["h200"].flops, "A100": CHIPS["a100"].flops,
    "TPU v4": CHIPS["v4"].flops, "TPU v5 lite": CHIPS["v5e"].flops, "TPU v5": CHIPS["v5p"].flops,
    "TPU v6 lite": CHIPS["v6e"].flops,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Timing:
    """Repeated runs after warm-up: `seconds` of each."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def min(self) -> float:
        return min(self.seconds)

    @property
    def spread(self) -> float:
        """Distance between the quartiles, as a share of the median; 0 for a single run."""
        return quartile_spread(self.seconds)

    def plain(self) -> dict:
        """For JSON."""
        return {"median": self.median, "min": self.min, "spread": self.spread, "seconds": list(self.seconds)}


def quartile_spread(values: tuple[float, ...]) -> float:
    """(upper - lower quartile) / median."""
    if len(values) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / middle


def timed(call: Callable, repeats: int = 9, warmup: int = 2) -> Timing:
    """Wall time of `call()` until the arrays that it returns are there.

    Args:
        call: without arguments; what it does beside computing on the device is timed too.
        repeats: runs that count. warmup: runs before them that do not.
    """
    seconds = []
    for _ in range(warmup + repeats):
        began = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - began)
    return Timing(tuple(seconds[warmup:]))


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled function: `call` it like the function.

    Attributes:
        compile_seconds: tracing and compilation. products: FLOPs of its matrix products and convolutions as
            often as loops run them, recomputation included. products_once: every loop counted once.
        xla: FLOPs of XLA's cost analysis before optimization: every loop once, elementwise work included.
        temporaries: bytes that the compiled program needs beside its arguments and outputs.
    """

    call: Callable
    compile_seconds: float
    products: float
    products_once: float
    xla: float
    temporaries: int

    def plain(self) -> dict:
        """For JSON."""
        return {k.name: getattr(self, k.name) for k in dataclasses.fields(self) if k.name != "call"}


def compiled(function: Callable, *arguments, donate: tuple[int, ...] = ()) -> Program:
    """Compile as training does, and count.

    Args:
        function: of arrays; jitted here unless it is already. arguments: arrays or ShapeDtypeStructs.
        donate: positions of arguments whose memory is reused.
    """
    began = time.perf_counter()
    jitted = function if hasattr(function, "trace") else jax.jit(function, donate_argnums=donate)
    traced = jitted.trace(*arguments)
    lowered = traced.lower()
    on_cpu = jax.default_backend() == "cpu"
    executable = lowered.compile(CPU_COMPILER_OPTIONS if on_cpu else None)
    took = time.perf_counter() - began
    return Program(
        call=executable,
        compile_seconds=took,
        products=products(traced.jaxpr.jaxpr),
        products_once=products(traced.jaxpr.jaxpr, loops=False),
        xla=(lowered.cost_analysis() or {}).get("flops", 0.0),
        temporaries=executable.memory_analysis().temp_size_in_bytes,
    )


def matmul_peak(dtype: str, repeats: int = 9) -> float:
    """FLOP/s of large square matrix products of random numbers in this run: the best of `repeats`."""
    on_cpu = jax.default_backend() == "cpu"
    side, count = (2048, 2) if on_cpu else (8192, 16)
    x, w = (jax.random.normal(jax.random.key(i), (side, side), dtype) for i in range(2))
    w = w / side**0.5  # keeps the numbers' size over the products

    @jax.jit
    def chain(x, w):
        return jax.lax.fori_loop(0, count, lambda _, x: x @ w, x)

    return 2 * side**3 * count / timed(lambda: chain(x, w), repeats).min


def stated_peak(kind: str, dtype: str) -> float | None:
    """The vendor's bf16 FLOP/s of a device kind; None where none is known, or for another dtype."""
    known = [peak for name, peak in STATED.items() if name in kind]
    return known[0] if known and dtype == "bfloat16" else None


def peak_memory() -> int:
    """Most bytes in use since the process started: the device's, or on CPU the process's resident memory."""
    stats = jax.local_devices()[0].memory_stats()
    if stats:
        return stats["peak_bytes_in_use"]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
