"""Compile the real training step for chips that are not here, and say what it asks of each of them.

    python -m benchmarks.dryrun.dryrun --config=configs/imagenet_h14.py --topology=v5e:16x16
    python -m benchmarks.dryrun.dryrun --config=configs/imagenet_b16.py --topology=h100:1x8
    python -m benchmarks.dryrun.dryrun --config=configs/imagenet_b16.py --mesh=4,2

    --config=FILE              an experiment of configs/; any setting of it: --config.efficiency.remat=blocks
    --topology=v5e:16x16       TPU chips, by kind and arrangement; needs libtpu (pip install -e ".[tpu]");
                               GPUs as h100:HOSTSxGPUS, a100 or h200 too; needs pip install "jax[cuda13]"
    --mesh=DATA,FSDP           instead of config.efficiency.mesh; without --topology, on virtual CPU devices
    --json=FILE                the same numbers for programs

No weights, images or chips are needed. The first compilation of a large model takes minutes.
"""

import os
import re
import sys
import time

from sparse_vis.runtime import host

if __name__ == "__main__":
    host.prepare()

from absl import app, flags
from ml_collections import config_flags

from benchmarks.dryrun.gpu_target import GPUS, target_config
from benchmarks.dryrun.report import report
from sparse_vis.config import arguments, settings
from sparse_vis.runtime.errors import UserError, command_line

CONFIG = config_flags.DEFINE_config_file("config", None, "An experiment of configs/.")
TOPOLOGY = flags.DEFINE_string("topology", None, "TPU chips or GPUs, such as v5e:16x16 or h100:1x8.")
MESH = flags.DEFINE_list("mesh", None, "DATA,FSDP.")
JSON = flags.DEFINE_string("json", None, "File for the numbers.")

# Without a card there are no kernels to time; the user's XLA_FLAGS come after these.
GPU_FLAGS = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"


def parse(argv):
    """The flags, or one sentence on what is wrong with them; --help shows this file's docstring."""
    if {"-h", "--help", "-help"} & set(argv):
        print(__doc__)
        sys.exit(0)
    return arguments.parse(argv)


def mesh_shape() -> tuple[int, int] | None:
    """--mesh as two numbers."""
    if MESH.value is None:
        return None
    if len(MESH.value) != 2 or not all(part.isdecimal() and int(part) for part in MESH.value):
        raise UserError(f"--mesh={','.join(MESH.value)} is no mesh; give two numbers, as in --mesh=4,2.")
    return int(MESH.value[0]), int(MESH.value[1])


def topology_devices(topology: str) -> list:
    """Devices that are not here, which can be compiled for.

    Raises:
        UserError: the compiler for them is missing, or does not know the topology.
    """
    from jax.experimental import topologies

    from benchmarks.dryrun.chips import CHIPS

    kind, _, arrangement = topology.partition(":")
    if kind not in CHIPS:
        known = ", ".join(CHIPS)
        raise UserError(f"--topology={topology} is unknown; use {known}, as in v5e:16x16 or h100:1x8.")
    try:
        if kind in GPUS:
            slices = f"1x{arrangement}"
            found = topologies.get_topology_desc(
                slices, platform="cuda", topology=slices, target_config=target_config(kind)
            )
        else:
            found = topologies.get_topology_desc(topology_name=topology, platform="tpu")
        return found.devices
    except Exception as error:  # whatever the plugin raises, of any type
        reason = str(error).strip().splitlines()[0]
        install = '"jax[cuda13]" for the CUDA plugin' if kind in GPUS else '-e ".[tpu]" for libtpu'
        raise UserError(
            f"--topology={topology} cannot be compiled for ({reason}); use an arrangement that exists, "
            f"such as v5e:16x16, v4:2x2x4, v5p:4x4x4 or h100:1x8, and pip install {install}."
        ) from None


def compile_for(config, devices):
    """The step that main.py would run on these devices, compiled without any data."""
    import jax
    import numpy as np

    from benchmarks.speed.synthetic import random_batch, random_state, random_tokenizer, recipe_of
    from sparse_vis.train.mesh import make_mesh
    from sparse_vis.train.step import compile_step

    recipe = recipe_of(config)
    state = jax.eval_shape(lambda: random_state(recipe))
    batch = jax.eval_shape(lambda: random_batch(config))
    params = jax.eval_shape(lambda: random_tokenizer(recipe.model.tokenizer))
    mesh = make_mesh(config.efficiency.mesh, devices)
    lowered = compile_step(recipe, mesh, state).lower(state, batch, params, np.uint32(config.seed))
    on_cpu = devices[0].platform == "cpu"
    try:
        return lowered.compile(host.CPU_COMPILER_OPTIONS if on_cpu else None), dict(mesh.shape)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        used = re.search(r"Used (\S+) of (\S+) hbm", str(error))
        much = f"{used[1]} of {used[2]}" if used else "more than there is"
        raise UserError(
            f"the step does not fit the chips' memory: it uses {much}; set --config.efficiency.remat=blocks, "
            "raise --config.efficiency.microbatches, or split parameters over more chips (FSDP of --mesh)."
        ) from None


def measure(config, topology: str | None, devices: list) -> dict:
    """All numbers of one compilation, as JSON keeps them."""
    from benchmarks.dryrun.chips import CHIPS, link_bytes, seconds
    from benchmarks.dryrun.cost import cost

    began = time.perf_counter()
    compiled, mesh = compile_for(config, devices)
    took, memory = time.perf_counter() - began, compiled.memory_analysis()
    analysis = compiled.cost_analysis() or {}  # of GPU programs without a GPU there is none
    found = cost(compiled.as_text(), len(devices))
    result = {
        "topology": topology or f"{len(devices)} virtual CPU devices", "chips": len(devices), "mesh": mesh,
        "batch": config.train.batch, "efficiency": settings.plain(config)["efficiency"],
        "compile_seconds": took, "xla_flags": os.environ["XLA_FLAGS"].strip(),
        "memory": {
            "arguments": memory.argument_size_in_bytes, "outputs": memory.output_size_in_bytes,
            "reused": memory.alias_size_in_bytes, "temporaries": memory.temp_size_in_bytes,
            "program": memory.generated_code_size_in_bytes,
        },
        "flops": found.flops, "bytes": found.bytes, "passes": found.passes, "cycles": found.cycles,
        "xla_loops_once": {"flops": analysis.get("flops"), "bytes": analysis.get("bytes accessed")},
        "collectives": [
            {
                "kind": kind, "group": group, "part": part, "count": count, "bytes": size,
                "sent_bytes": link_bytes(kind, group, size),
            }
            for (kind, group, part), (count, size) in sorted(found.collectives.items())
        ],
    }  # fmt: skip
    m = result["memory"]
    m["peak"] = m["arguments"] + m["outputs"] - m["reused"] + m["temporaries"] + m["program"]
    if topology:
        chip = CHIPS[topology.split(":")[0]]
        result["seconds"] = seconds(found, chip)
        result["share_of_peak"] = found.flops / chip.flops / result["seconds"]["step"]
        m["of_chip"] = chip.memory
    return result


def main(_):
    config, mesh = CONFIG.value, mesh_shape()
    if config is None or (TOPOLOGY.value is None and mesh is None):
        raise UserError("give --config=configs/NAME.py, and --topology=v5e:16x16 or --mesh=DATA,FSDP.")
    os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1")
    added = ""
    if TOPOLOGY.value is None:
        added = f"--xla_force_host_platform_device_count={mesh[0] * mesh[1]}"
    elif TOPOLOGY.value.split(":")[0] in GPUS:
        added = GPU_FLAGS
        os.environ["JAX_COMPILATION_CACHE_DIR"] = ""  # such programs cannot be read back without a GPU
    os.environ["XLA_FLAGS"] = f"{added} {os.environ.get('XLA_FLAGS', '')}"
    import jax  # only now, as it reads the environment

    from benchmarks.speed.record import check_json, write_json

    check_json(JSON.value)
    devices = topology_devices(TOPOLOGY.value) if TOPOLOGY.value else jax.devices()
    with config.unlocked():
        config.efficiency.mesh = mesh or config.efficiency.mesh
    settings.check(config, len(devices))
    result = measure(config, TOPOLOGY.value, devices)
    print(report(result), flush=True)
    write_json(JSON.value, result)


if __name__ == "__main__":
    command_line(lambda: app.run(main, flags_parser=parse))
