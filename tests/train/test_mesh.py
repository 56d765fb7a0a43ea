"""Results do not depend on the mesh, what lives where, and what travels between devices."""

from __future__ import annotations

import functools
import os
import re
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from sparse_vis.runtime.errors import UserError
from sparse_vis.runtime.names import path_name
from sparse_vis.train.mesh import make_mesh, state_sharding
from sparse_vis.train.recipe import build_recipe
from sparse_vis.train.step import initial_state
from tests.main_process import ROOT
from tests.train.tiny_config import get_config

MESHES = ("8,1", "4,2", "1,8")
SPLIT = (
    *(f"{name}/kernel" for name in ("qkv", "attention_out", "mlp_in", "mlp_out")),
    *(f"norm_{part}/{name}" for part in ("attention", "mlp") for name in ("scale", "bias")),
)
SECONDS = 900  # for a machine that is busy with other things


def start(devices: int, *arguments: str, module: str = "tests.train.mesh_process") -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={
            **os.environ, "JAX_PLATFORMS": "cpu", "PJRT_NPROC": "32", "JAX_ENABLE_COMPILATION_CACHE": "false",
            "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}",
        },
    )  # fmt: skip


def finish(*processes: subprocess.Popen) -> list[str]:
    """Outputs of processes that must end well; none outlives this call."""
    try:
        outputs = [process.communicate(timeout=SECONDS)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output[-3000:]
    return outputs


@pytest.fixture(scope="module")
def steps(tmp_path_factory):
    """mesh -> tensors: one step on 1 device, on 8 in three shapes, and on 2 processes with 4 each."""
    folder = tmp_path_factory.mktemp("mesh")
    one, two = folder / "one.npz", folder / "two.npz"
    meshes = [f"--mesh={mesh}" for mesh in ("1,1", *MESHES)]
    finish(start(8, f"--output={one}", *meshes, "--programs"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    common = (f"--output={two}", "--mesh=4,2", f"--coordinator={address}", "--processes=2")
    finish(*(start(4, *common, f"--process={process}") for process in range(2)))
    found = {}
    for kind, path in (("", one), ("2 x ", two)):
        for name, array in np.load(path).items():
            mesh, _, tensor = name.partition("/")
            found.setdefault(kind + mesh, {})[tensor] = array
    return found


def part(step: dict, kind: str) -> dict[str, np.ndarray]:
    return {
        k.removeprefix(f"{kind}/"): v.astype(np.float64) for k, v in step.items() if k.startswith(f"{kind}/")
    }


def whole(tensors: dict) -> np.ndarray:
    return np.concatenate([tensors[name].ravel() for name in sorted(tensors)])


def relative(a, b) -> float:
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("mesh", [*MESHES, "2 x 4,2"])
def test_loss_gradient_update_and_matches_do_not_depend_on_the_mesh(steps, mesh):
    ours, reference = steps[mesh], steps["1,1"]
    metrics, expected = part(ours, "metric"), part(reference, "metric")
    assert metrics["total"] == pytest.approx(expected["total"], rel=1e-6)
    assert metrics["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=1e-6)
    for name in ("checksums", "image_match", "masked_match"):
        assert np.array_equal(ours[name], reference[name])
    gradient, true = part(ours, "gradient"), part(reference, "gradient")
    assert relative(whole(gradient), whole(true)) < 1e-6
    for name, tensor in true.items():
        if name.endswith("key.bias"):  # its true gradient is zero
            assert np.linalg.norm(gradient[name]) < 1e-6 * np.linalg.norm(whole(true)), name
        elif np.any(tensor):
            assert relative(gradient[name], tensor) < 1e-5, name
        else:
            assert not np.any(gradient[name]), name
    after, expected = part(ours, "params"), part(reference, "params")
    for name in expected:
        if name.endswith("key.bias"):  # Adam turns its rounding into steps of the learning rate
            del after[name]
    assert relative(whole(after), whole({name: expected[name] for name in after})) < 1e-6


@pytest.mark.parametrize("mesh", ["4,2", "2 x 4,2"])
def test_fine_tuning_does_not_depend_on_the_mesh(steps, mesh):
    assert relative(steps[mesh]["finetuned"], steps["1,1"]["finetuned"]) < 1e-6


@pytest.mark.parametrize("mesh", MESHES)
def test_gradients_of_bfloat16_are_summed_over_devices_in_float32(steps, mesh):
    """Sums in bfloat16 would differ by 1e-3: each has a rounding error of 2e-3."""
    assert relative(steps[mesh]["rounded"], steps["1,1"]["rounded"]) < 1e-5


def moved(text) -> list[str]:
    """The lines of a compiled program that gather or exchange arrays between devices."""
    return re.findall(r"= .* (?:all-gather|all-to-all)(?:-start)?\(.*", str(text))


def test_sinkhorn_gathers_nothing_of_the_batch(steps):
    """What travels are maxima and sums of columns, K numbers; to sort columns, their rows would have to."""
    sinkhorn = str(steps["program"]["sinkhorn"])
    assert moved(sinkhorn) == [] and len(moved(steps["program"]["sorting"])) > 0
    reduced = re.findall(r"= (\w+\[[\d,]*\])\S* all-reduce(?:-start)?\(", sinkhorn)
    assert set(reduced) == {"f32[48]"}
    # Nor where the rows come from microbatches, image by image.
    assert moved(steps["program"]["microbatches"]) == []
    # In the whole step too, unless parameters are split, nothing is gathered or exchanged.
    assert moved(steps["8,1"]["step"]) == [] and "all-reduce" in str(steps["8,1"]["step"])


def test_checksums_gather_nothing(steps):
    program = str(steps["program"]["checksum"])
    assert moved(program) == [] and "all-reduce" in program


@pytest.mark.parametrize("mesh", ["4,2", "1,8"])
def test_with_fsdp_only_kernels_of_the_blocks_are_gathered(steps, mesh):
    """Activations stay where their images are."""
    kernels = "|".join(("16,48", "16,16", "16,32", "32,16"))
    lines = moved(steps[mesh]["step"])
    assert len(lines) > 0
    assert [line for line in lines if not re.match(rf"= f32\[({kernels})\]\S* all-gather", line)] == []


@pytest.mark.fast
@pytest.mark.fast
@pytest.mark.parametrize("shape", [(0, -1), (-1, 0), (-1, -1), (-2, -4), (3, -1), (8, 2), (0, 0)])
def test_a_shape_that_does_not_cover_the_devices_is_refused(shape):
    with pytest.raises(UserError, match=r"does not cover the 8 devices; use \(-1, 1\), or two numbers"):
        make_mesh(shape, [None] * 8)


def test_parameters_of_the_blocks_are_split_wherever_they_are():
    """Kernels and LayerNorm's, both moments of Adam and the teacher alike; all else is whole everywhere."""
    state = jax.eval_shape(functools.partial(initial_state, build_recipe(get_config())))
    mesh = AbstractMesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    leaves = jax.tree_util.tree_leaves_with_path(state_sharding(mesh, state))
    split = {path_name(path) for path, sharding in leaves if sharding.spec == PartitionSpec(None, "fsdp")}
    whole = {path_name(path) for path, sharding in leaves if sharding.spec == PartitionSpec()}
    assert len(split) + len(whole) == len(leaves)
    names = {f"{trunk}/trunk/blocks/{name}" for trunk in ("encoder", "decoder") for name in SPLIT}
    assert {name for name in split if name.startswith("params/")} == {f"params/{name}" for name in names}
    adam = [name for name in split if name.startswith("opt_state/")]
    for moment in ("mu", "nu"):
        ends = {name.split(f"/{moment}/")[1] for name in adam if f"/{moment}/" in name}
        assert ends == names
    assert len(adam) == 2 * len(names)
    teacher = {f"teacher/{name}" for name in names if name.startswith("encoder/")}
    assert {name for name in split if name.startswith("teacher/")} == teacher
    # A mesh that does not divide an axis leaves it whole.
    odd = AbstractMesh((1, 3), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    assert {s.spec for s in jax.tree.leaves(state_sharding(odd, state))} == {PartitionSpec()}
