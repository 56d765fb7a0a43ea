"""What XLA must know of a GPU to compile for one that is not here."""

from __future__ import annotations

import dataclasses

from benchmarks.dryrun.chips import CHIPS


@dataclasses.dataclass(frozen=True)
class Gpu:
    """Numbers of XLA's own descriptions of these cards, xla/backends/gpu/target_config/specs.

    Attributes:
        name: as the driver says it. capability: (major, minor, extension) of CUDA. cores: multiprocessors.
        units: float32 units per core. clock: GHz. cache: bytes of L2. shared: bytes of shared memory per
            core. block: of them, what one block may ask for.
    """

    name: str
    capability: tuple[int, int, str]
    cores: int
    units: int
    clock: float
    cache: int
    shared: int
    block: int


HOPPER = ((9, 0, "ACCELERATED_FEATURES"), 132, 128, 1.98, 52_428_800, 233_472, 232_448)
GPUS = {
    "a100": Gpu("NVIDIA A100-SXM4-80GB", (8, 0, "NONE"), 108, 64, 1.41, 41_943_040, 167_936, 166_912),
    "h100": Gpu("NVIDIA H100 80GB HBM3", *HOPPER),
    "h200": Gpu("NVIDIA H200 141GB HBM3e", *HOPPER),
}


def target_config(kind: str) -> str:
    """The card's description as the text of XLA's GpuTargetConfigProto; `kind` is one of GPUS."""
    gpu, chip = GPUS[kind], CHIPS[kind]
    major, minor, extension = gpu.capability
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: {gpu.shared}
  shared_memory_per_block_optin: {gpu.block}
  core_count: {gpu.cores} fpus_per_core: {gpu.units} clock_rate_ghz: {gpu.clock}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  memory_bandwidth: {chip.bandwidth:.0f} l2_cache_size: {gpu.cache} device_memory_size: {chip.memory}
  cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: {extension} }}
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{gpu.name}"
"""
