"""The numbers of a dry run as a page of text."""

from __future__ import annotations

GIB = 2**30


def report(r: dict) -> str:
    """Memory, work, time and collectives of benchmarks/dryrun/dryrun.py's result, per chip and step."""
    m, images, estimated = r["memory"], r["batch"], "seconds" in r
    names = ("arguments", "outputs", "temporaries", "program")
    parts = ", ".join(f"{name} {m[name] / GIB:.2f}" for name in names)
    room = f" of {m['of_chip'] / GIB:.0f} GiB ({m['peak'] / m['of_chip']:.0%})" if estimated else " GiB"
    how = ", ".join(f"{name}={value}" for name, value in r["efficiency"].items() if name != "mesh")
    per_image, once = r["flops"] * r["chips"] / images, r["xla_loops_once"]["flops"]
    lines = [
        f"{r['topology']}: {r['chips']} chips as {r['mesh']}, batch {images}; {how}",
        f"compiled in {r['compile_seconds']:.0f} s; per chip and step:",
        f"  memory       {m['peak'] / GIB:.2f}{room}: {parts}; reused {m['reused'] / GIB:.2f}"
        + ("" if estimated else " (of the CPU program, which says little about other devices)"),
        f"  FLOPs        {r['flops'] / 1e12:.3f} T, {per_image / 1e12:.3f} T per image"
        + (f" (XLA, which counts loops once: {once / 1e12:.3f} T)" if once else ""),
        f"  bytes        {r['bytes'] / 1e9:.2f} GB of main memory; of them by what computes no product:",
    ]
    for part, passed in sorted(r["passes"].items(), key=lambda item: -item[1]):
        lines.append(f"               {passed / 1e9:>10.2f}  {part}")
    if estimated:
        s = {name: 1e3 * value for name, value in r["seconds"].items()}
        lines += [
            f"  time         {s['step']:.0f} ms estimated: {s['chip']:.0f} on the chip (compute alone "
            f"{s['compute']:.0f}, memory alone {s['memory']:.0f}, what is no product {s['passes']:.0f}) and "
            f"{s['links']:.0f} on the links",
            f"  throughput   {1e3 * images / s['step']:.0f} images/s, {r['share_of_peak']:.0%} of peak",
        ]
    lines.append("  collectives  kind               group  count         MB    MB sent  part")
    for c in r["collectives"]:
        lines.append(
            f"               {c['kind']:<18} {c['group']:>5} {c['count']:>6} {c['bytes'] / 1e6:>10.2f} "
            f"{c['sent_bytes'] / 1e6:>10.2f}  {c['part']}"
        )
    return "\n".join(lines)
