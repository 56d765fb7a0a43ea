"""What a chip offers, and what a step that asks for so much takes on it."""

from __future__ import annotations

import dataclasses

from benchmarks.dryrun.cost import Cost


@dataclasses.dataclass(frozen=True)
class Chip:
    """Numbers of the vendors: cloud.google.com/tpu/docs/v4, v5e, v5p and v6e; NVIDIA's data sheets (SXM).

    Attributes:
        memory: bytes. flops: dense bf16 operations per second. bandwidth: of the memory, bytes per second.
        links: bytes per second that the chip sends to its neighbours over all links together, half of the
            "bidirectional inter-chip interconnect bandwidth" (v4: six links of 50 GB/s each way); of NVLink.
        clock: cycles per second, from `flops` and the matrix units' size (four of 128 x 128 per core, two
            operations per cell); 0 for v6e, whose pages do not agree with themselves on this, and for
            GPUs, whose compiler makes no estimate.
    """

    memory: float
    flops: float
    bandwidth: float
    links: float
    clock: float


CHIPS = {
    "v4": Chip(32 * 2**30, 275e12, 1200e9, 300e9, 1.05e9),
    "v5e": Chip(16 * 2**30, 197e12, 819e9, 200e9, 1.5e9),
    "v5p": Chip(95 * 2**30, 459e12, 2765e9, 600e9, 1.75e9),
    "v6e": Chip(32 * 2**30, 918e12, 1638e9, 400e9, 0.0),
    "a100": Chip(85_100_068_864, 312e12, 2039e9, 300e9, 0.0),
    "h100": Chip(84_942_979_072, 989e12, 3352e9, 450e9, 0.0),
    "h200": Chip(151_397_597_184, 989e12, 4800e9, 450e9, 0.0),
}


def link_bytes(kind: str, group: int, size: float) -> float:
    """Bytes that each chip sends for a collective on arrays of `size` bytes; a ring's, which no torus beats.

    Args:
        kind: of COLLECTIVES. group: chips that take part. size: of the whole array on one chip, bytes.
    """
    if kind == "collective-permute":
        return size
    return (2 if kind == "all-reduce" else 1) * size * (group - 1) / group


def seconds(cost: Cost, chip: Chip) -> dict[str, float]:
    """Estimated seconds per step: compute, memory, links, and their combination.

    `chip` is the compiler's estimate (its cycles); where it makes none, products at the chip's peak and then
    all passes over memory that are no products (`passes`), a limit that no program reaches. `step` adds the
    links, as if nothing overlapped.
    """
    compute, memory = cost.flops / chip.flops, cost.bytes / chip.bandwidth
    passes = sum(cost.passes.values()) / chip.bandwidth
    links = sum(link_bytes(kind, group, size) for (kind, group, _), (_, size) in cost.collectives.items())
    on_chip = cost.cycles / chip.clock if cost.cycles and chip.clock else compute + passes
    return {
        "compute": compute, "memory": memory, "passes": passes, "links": links / chip.links, "chip": on_chip,
        "step": on_chip + links / chip.links,
    }  # fmt: skip
