"""Compile the real training step for chips that this machine lacks, and print its cost on each of them.

    python -m benchmarks.dryrun.dryrun --config=configs/imagenet_h14.py --topology=v5e:16x16
    python -m benchmarks.dryrun.dryrun --config=configs/imagenet_b16.py --topology=h100:1x8
    python -m benchmarks.dryrun.dryrun --config=configs/imagenet_b16.py --mesh=4,2

    --config=FILE              an experiment of configs/; any setting of it: --config.efficiency.remat=blocks
    --topology=v5e:16x16       TPU chips, by kind and arrangement; needs libtpu (pip install -e ".[tpu]");
                               GPUs as h100:HOSTSxGPUS, a100 or h200 too; needs pip install "jax[cuda13]"
    --mesh=DATA,FSDP           instead of config.efficiency.mesh; without --topology, on virtual CPU devices
    --json=FILE                file for the numbers

No weights, images or chips are needed. The first compilation of a large model takes minutes.
"""

import os
import re
import time

from sparse_vis.runtime import host

if __name__ == "__main__":
    host.prepare()

from absl import flags

from benchmarks.dryrun.chips import CHIPS, GPUS, link_bytes, seconds, target_config
from benchmarks.dryrun.cost import cost
from benchmarks.speed import command
from sparse_vis.config import settings
from sparse_vis.runtime.errors import UserError

# Without a GPU, no kernels can be timed to choose among them. The user's XLA_FLAGS come after these.
GPU_FLAGS = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
GIB = 2**30


def mesh_shape(parts: list[str] | None) -> tuple[int, int] | None:
    """The two numbers of --mesh; raises UserError."""
    if parts is None:
        return None
    if len(parts) != 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise UserError(f"--mesh={','.join(parts)} is not a mesh; give two numbers, as in --mesh=4,2.")
    return int(parts[0]), int(parts[1])


def topology_devices(topology: str) -> list:
    """Descriptions of the devices, for which JAX can compile without having them."""
    from jax.experimental import topologies

    kind, _, arrangement = topology.partition(":")
    if kind not in CHIPS:
        known = ", ".join(CHIPS)
        raise UserError(f"--topology={topology} is unknown; use {known}, as in v5e:16x16 or h100:1x8.")
    try:
        if kind not in GPUS:
            return topologies.get_topology_desc(topology_name=topology, platform="tpu").devices
        slices, target = f"1x{arrangement}", target_config(kind)
        return topologies.get_topology_desc(
            slices, platform="cuda", topology=slices, target_config=target
        ).devices
    except Exception as error:  # whatever the plugin raises, of any type
        reason = str(error).strip().splitlines()[0]
        install = '"jax[cuda13]" for the CUDA plugin' if kind in GPUS else '-e ".[tpu]" for libtpu'
        raise UserError(
            f"--topology={topology} cannot be compiled for ({reason}); use an arrangement that exists, "
            f"such as v5e:16x16, v4:2x2x4, v5p:4x4x4 or h100:1x8, and pip install {install}."
        ) from None


def compile_for(config, devices):
    """The step that main.py would run on these devices, compiled without data; and its mesh."""
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
    """All numbers of one compilation, for JSON."""
    began = time.perf_counter()
    compiled, mesh = compile_for(config, devices)
    took, memory = time.perf_counter() - began, compiled.memory_analysis()
    analysis = compiled.cost_analysis() or {}  # empty for GPU programs without a GPU
    found = cost(compiled.as_text(), len(devices))
    m = {
        "arguments": memory.argument_size_in_bytes, "outputs": memory.output_size_in_bytes,
        "reused": memory.alias_size_in_bytes, "temporaries": memory.temp_size_in_bytes,
        "program": memory.generated_code_size_in_bytes,
    }  # fmt: skip
    m["peak"] = m["arguments"] + m["outputs"] - m["reused"] + m["temporaries"] + m["program"]
    result = {
        "topology": topology or f"{len(devices)} virtual CPU devices", "chips": len(devices), "mesh": mesh,
        "batch": config.train.batch, "efficiency": settings.plain(config)["efficiency"],
        "compile_seconds": took, "xla_flags": os.environ["XLA_FLAGS"], "memory": m,
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
    if topology:
        chip = CHIPS[topology.split(":")[0]]
        result["seconds"] = seconds(found, chip)
        result["share_of_peak"] = found.flops / chip.flops / result["seconds"]["step"]
        m["of_chip"] = chip.memory
    return result


def report(r: dict) -> str:
    """Memory, work, time and collectives of `measure`'s result as text, per chip and step."""
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
        f"  bytes        {r['bytes'] / 1e9:.2f} GB of main memory; of them outside products and attention:",
    ]
    for part, passed in sorted(r["passes"].items(), key=lambda item: -item[1]):
        lines.append(f"               {passed / 1e9:>10.2f}  {part}")
    if estimated:
        s = {name: 1e3 * value for name, value in r["seconds"].items()}
        lines += [
            f"  time         {s['step']:.0f} ms estimated: {s['chip']:.0f} on the chip (compute alone "
            f"{s['compute']:.0f}, memory alone {s['memory']:.0f}, outside products {s['passes']:.0f}) and "
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


def main(given):
    config, mesh, topology = given.config, mesh_shape(given.mesh), given.topology
    if config is None or (topology is None and mesh is None):
        raise UserError("give --config=configs/NAME.py, and --topology=v5e:16x16 or --mesh=DATA,FSDP.")
    os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1")
    added = ""
    if topology is None:
        added = f"--xla_force_host_platform_device_count={mesh[0] * mesh[1]}"
    elif topology.split(":")[0] in GPUS:
        added = GPU_FLAGS
        os.environ["JAX_COMPILATION_CACHE_DIR"] = ""  # such programs cannot be read back without a GPU
    os.environ["XLA_FLAGS"] = f"{added} {os.environ.get('XLA_FLAGS', '')}".strip()
    import jax  # only now, as it reads the environment

    command.check_file(given.json)
    devices = topology_devices(topology) if topology else jax.devices()
    with config.unlocked():
        config.efficiency.mesh = mesh or config.efficiency.mesh
    settings.check(config, len(devices))
    result = measure(config, topology, devices)
    print(report(result), flush=True)
    command.write_json(given.json, result)


if __name__ == "__main__":
    flags.DEFINE_string("topology", None, "TPU chips or GPUs, such as v5e:16x16 or h100:1x8.")
    flags.DEFINE_list("mesh", None, "DATA,FSDP.")
    command.run(main, __doc__, times=False)
