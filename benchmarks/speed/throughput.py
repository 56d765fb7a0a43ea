"""Images per second, and how far from the device's limit: for step.py and encode.py."""

from __future__ import annotations

from collections.abc import Callable

import jax

from benchmarks.speed.measure import Program, matmul_peak, peak_memory, stated_peak, timed


def throughput(program: Program, call: Callable, repeats: int, images: int, flops: float, dtype: str) -> dict:
    """Time a program, and tell how far it is from the device's limit.

    Args:
        program: of benchmarks/speed/measure.py. call: runs it, without arguments. repeats: timed runs.
        images: per call. flops: per image, by formula.
        dtype: of the computation, whose matrix products are measured before and after: the better one counts,
            as a machine that others share is not always as fast.

    Returns:
        As JSON keeps it; shares of peak count the formula's FLOPs, and are None where no peak is stated.
    """
    kind, chips = jax.devices()[0].device_kind, jax.device_count()
    before, timing = matmul_peak(dtype), timed(call, repeats)
    rate = images / timing.median
    stated, measured = stated_peak(kind, dtype), max(before, matmul_peak(dtype))
    achieved = rate * flops / chips
    return {
        "images": images, "dtype": dtype, "seconds": timing.plain(), "images_per_second": rate,
        "flops_per_image": flops, "program": program.plain(), "peak_memory": peak_memory(),
        "stated_peak": stated, "measured_peak": measured, "share_of_measured": achieved / measured,
        "share_of_stated": achieved / stated if stated else None,
    }  # fmt: skip


def report(r: dict) -> str:
    """The numbers of `throughput` as text."""
    s, p, executed = r["seconds"], r["program"], r["program"]["products"] / r["images"]
    stated = (
        f"{r['share_of_stated']:.1%} of the stated {r['stated_peak'] / 1e12:.0f} TFLOP/s"
        if r["stated_peak"]
        else "no stated peak"
    )
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
