"""Numbers of TPU chips and GPUs, and the time of a step on one, estimated from the step's cost."""

import dataclasses

from benchmarks.dryrun.cost import Cost


@dataclasses.dataclass(frozen=True)
class Chip:
    """The vendors' numbers: cloud.google.com/tpu/docs/v4, v5e, v5p and v6e; NVIDIA's data sheets (SXM)."""

    memory: float  # bytes
    flops: float  # dense bf16 operations per second
    bandwidth: float  # of the memory, bytes per second
    # Bytes per second that the chip sends over all links: half of the "bidirectional inter-chip interconnect
    # bandwidth" (v4: six links of 50 GB/s each way), or of NVLink.
    links: float
    # Cycles per second, from `flops` and the size of the matrix units (four of 128 x 128 per core, two
    # operations per cell); 0 if unknown: v6e's pages contradict each other, and for GPUs XLA has no estimate.
    clock: float
    kind: str  # part of JAX's device_kind; v5e is listed before v5p, whose kind is a part of its own


CHIPS = {
    "v4": Chip(32 * 2**30, 275e12, 1200e9, 300e9, 1.05e9, "TPU v4"),
    "v5e": Chip(16 * 2**30, 197e12, 819e9, 200e9, 1.5e9, "TPU v5 lite"),
    "v5p": Chip(95 * 2**30, 459e12, 2765e9, 600e9, 1.75e9, "TPU v5"),
    "v6e": Chip(32 * 2**30, 918e12, 1638e9, 400e9, 0.0, "TPU v6 lite"),
    "a100": Chip(85_100_068_864, 312e12, 2039e9, 300e9, 0.0, "A100"),
    "h100": Chip(84_942_979_072, 989e12, 3352e9, 450e9, 0.0, "H100 80GB HBM3"),
    "h200": Chip(151_397_597_184, 989e12, 4800e9, 450e9, 0.0, "H200"),
}


# XLA's own descriptions of these cards (xla/backends/gpu/target_config/specs); sizes in bytes.
HOPPER = {
    "core_count": 132, "fpus_per_core": 128, "clock_rate_ghz": 1.98, "l2_cache_size": 52_428_800,
    "shared_memory_per_core": 233_472, "shared_memory_per_block_optin": 232_448,
    "cuda_compute_capability": "{ major: 9 minor: 0 feature_extension: ACCELERATED_FEATURES }",
}  # fmt: skip
AMPERE = {
    "core_count": 108, "fpus_per_core": 64, "clock_rate_ghz": 1.41, "l2_cache_size": 41_943_040,
    "shared_memory_per_core": 167_936, "shared_memory_per_block_optin": 166_912,
    "cuda_compute_capability": "{ major: 8 minor: 0 feature_extension: NONE }",
}  # fmt: skip
GPUS = {
    "a100": ("NVIDIA A100-SXM4-80GB", AMPERE),
    "h100": ("NVIDIA H100 80GB HBM3", HOPPER),
    "h200": ("NVIDIA H200 141GB HBM3e", HOPPER),
}


def target_config(kind: str) -> str:
    """Description of one of GPUS for XLA's compiler, as the text of a GpuTargetConfigProto."""
    name, known = GPUS[kind]
    memory = {"memory_bandwidth": f"{CHIPS[kind].bandwidth:.0f}", "device_memory_size": CHIPS[kind].memory}
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  {" ".join(f"{field}: {value}" for field, value in (known | memory).items())}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{name}"
"""


def link_bytes(kind: str, group: int, size: float) -> float:
    """Bytes that each of the `group` chips of a collective sends in a ring, than which no torus sends fewer.

    `size`: bytes of the array on each chip. `kind`: one of COLLECTIVES.
    """
    if kind == "collective-permute":
        return size
    return (2 if kind == "all-reduce" else 1) * size * (group - 1) / group


def seconds(cost: Cost, chip: Chip) -> dict[str, float]:
    """Estimated seconds per step: compute, memory, links, and their combination.

    `chip` is the compiler's estimate. Without one, it is a lower bound that no program reaches: all products
    at the chip's peak, and then all memory traffic outside of products (`passes`). `step` adds the links,
    without overlap.
    """
    compute, memory = cost.flops / chip.flops, cost.bytes / chip.bandwidth
    passes = sum(cost.passes.values()) / chip.bandwidth
    links = sum(link_bytes(kind, group, size) for (kind, group, _), (_, size) in cost.collectives.items())
    on_chip = cost.cycles / chip.clock if cost.cycles and chip.clock else compute + passes
    return {
        "compute": compute, "memory": memory, "passes": passes, "links": links / chip.links, "chip": on_chip,
        "step": on_chip + links / chip.links,
    }  # fmt: skip
