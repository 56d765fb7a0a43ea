"""The dry run: what it counts where the answer is known, and the tool itself on virtual devices."""

from __future__ import annotations

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.dryrun import pod_table, scaling_table
from benchmarks.dryrun.chips import CHIPS, GPUS, link_bytes, seconds, target_config
from benchmarks.dryrun.cost import Cost, cost
from tests.main_process import ROOT, TINY

# Two loops, one in the other, as the TPU and the CPU compiler write them; 8 devices.
PROGRAM = """HloModule step, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%inner_body (p: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %p = (s32[], f32[4,8]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[4,8]{1,0} get-tuple-element(%p), index=1
  %reduced = f32[4,8]{1,0} all-reduce(%x), replica_groups=[2,4]<=[8], to_apply=%add
  ROOT %next = (s32[], f32[4,8]) tuple(%i, %reduced)
}

%inner_condition (q: (s32[], f32[4,8])) -> pred[] {
  %q = (s32[], f32[4,8]) parameter(0)
  %bound = s32[]{:T(128)} constant(5)
  %j = s32[]{:T(128)} get-tuple-element(%q), index=0
  ROOT %less = pred[] compare(%j, %bound), direction=LT
}

%piece (r: bf16[2,8]) -> bf16[16,8] {
  %r = bf16[2,8]{1,0} parameter(0)
  ROOT %gathered = bf16[16,8]{1,0} all-gather(%r), channel_id=7, replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
}

%other_piece (s: bf16[2,8]) -> bf16[16,8] {
  %s = bf16[2,8]{1,0} parameter(0)
  ROOT %again = bf16[16,8]{1,0} all-gather(%s), channel_id=7, replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
}

%outer_body (t: (s32[], f32[4,8], bf16[2,8])) -> (s32[], f32[4,8], bf16[2,8]) {
  %t = (s32[], f32[4,8], bf16[2,8]) parameter(0)
  %k = s32[] get-tuple-element(%t), index=0
  %y = f32[4,8]{1,0} get-tuple-element(%t), index=1
  %w = bf16[2,8]{1,0} get-tuple-element(%t), index=2
  %one = bf16[16,8]{1,0} fusion(%w), kind=kCustom, calls=%piece, metadata={op_name="jit(f)/transpose(jvp(S))/encoder/dot"}
  %two = bf16[16,8]{1,0} fusion(%w), kind=kCustom, calls=%other_piece
  %start = (s32[], f32[4,8]) tuple(%k, %y)
  %loop = (s32[], f32[4,8]) while(%start), condition=%inner_condition, body=%inner_body
  %z = f32[4,8]{1,0} get-tuple-element(%loop), index=1
  ROOT %out = (s32[], f32[4,8], bf16[2,8]) tuple(%k, %z, %w)
}

%outer_condition (u: (s32[], f32[4,8], bf16[2,8])) -> pred[] {
  %u = (s32[], f32[4,8], bf16[2,8]) parameter(0)
  %l = s32[] get-tuple-element(%u), index=0
  %many = s32[] constant(100)
  ROOT %lt = pred[] compare(%l, %many), direction=LT
}

ENTRY %main (x: f32[4,8], w: bf16[2,8]) -> f32[4,8] {
  %x.1 = f32[4,8]{1,0} parameter(0)
  %w.1 = bf16[2,8]{1,0} parameter(1)
  %zero = s32[] constant(0)
  %init = (s32[], f32[4,8], bf16[2,8]) tuple(%zero, %x.1, %w.1)
  %whole = (s32[], f32[4,8], bf16[2,8]) while(%init), condition=%outer_condition, body=%outer_body, backend_config={"known_trip_count":{"n":"3"}}
  %result = f32[4,8]{1,0} get-tuple-element(%whole), index=1
  %alone = f32[4,8]{1,0} all-reduce(%result), replica_groups=[8,1]<=[8], to_apply=%add
  %moved-start = (f32[4,8]{1,0}, f32[4,8]{1,0}) collective-permute-start(%alone), source_target_pairs={{0,1},{1,0}}
  ROOT %moved = f32[4,8]{1,0} collective-permute-done(%moved-start)
}
"""  # noqa: E501


def test_collectives_of_nested_loops():
    """3 x 5 all-reduces of 128 bytes in groups of 4; 3 gathers in two pieces each; a group of one is none."""
    found = cost(PROGRAM, 8).collectives
    assert found == {
        ("all-reduce", 4, "made by the compiler"): (15, 15 * 128.0),
        ("all-gather", 8, "made by the compiler"): (3, 3 * 256.0),
        ("collective-permute", 2, "made by the compiler"): (1, 128.0),
    }
    once = cost(PROGRAM, 8, loops=False).collectives
    assert once["all-reduce", 4, "made by the compiler"] == (1, 128.0)


def compiled(function, *shapes):
    return jax.jit(function).lower(*(jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes)).compile()


def test_flops_of_a_scan_are_multiplied_out():
    """7 layers of 16 x 32 times 32 x 32 are 7 products; XLA's analysis knows of one."""

    def layers(x, w):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

    program = compiled(layers, (16, 32), (7, 32, 32))
    product = 2 * 16 * 32 * 32
    assert cost(program.as_text(), 1).flops == 7 * product
    assert cost(program.as_text(), 1, loops=False).flops == product
    assert program.cost_analysis()["flops"] == pytest.approx(product, rel=0.1)


def test_without_loops_flops_and_bytes_are_those_of_xla():
    """A product and a strided, padded convolution."""

    def function(x, kernel, w):
        dims = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=dims)
        return jnp.maximum(x, 0).reshape(2, -1) @ w

    program = compiled(function, (2, 9, 9, 4), (3, 3, 4, 8), (200, 16))
    analysis, ours = program.cost_analysis(), cost(program.as_text(), 1)
    assert ours.flops == pytest.approx(analysis["flops"], rel=0.05)
    assert ours.bytes == pytest.approx(analysis["bytes accessed"], rel=0.05)


# As the GPU compiler writes it: libraries are called, with working memory after their results; the second
# product is called in a fusion that cuts a piece of w.
GPU_PROGRAM = """HloModule step

%called (p: bf16[2,8,16], x: bf16[4,8]) -> (bf16[4,16], s8[1000]) {
  %p = bf16[2,8,16]{2,1,0} parameter(0)
  %cut = bf16[1,8,16]{2,1,0} slice(%p), slice={[0:1], [0:8], [0:16]}
  %x = bf16[4,8]{1,0} parameter(1)
  ROOT %gemm = (bf16[4,16]{1,0}, s8[1000]{0}) custom-call(%x, %cut), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["1"]}}}
}

%added (a: bf16[4,16]) -> bf16[4,16] {
  %a = bf16[4,16]{1,0} parameter(0)
  ROOT %sum = bf16[4,16]{1,0} add(%a, %a)
}

ENTRY %main (x: bf16[4,8], w: bf16[2,8,16], image: bf16[2,6,6,4], kernel: bf16[8,3,3,4]) -> bf16[4,16] {
  %x.1 = bf16[4,8]{1,0} parameter(0)
  %w.1 = bf16[2,8,16]{2,1,0} parameter(1)
  %image.1 = bf16[2,6,6,4]{3,2,1,0} parameter(2)
  %kernel.1 = bf16[8,3,3,4]{3,2,1,0} parameter(3)
  %conv = (bf16[2,4,4,8]{3,2,1,0}, u8[0]{0}) custom-call(%image.1, %kernel.1), window={size=3x3}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward"
  %lt = (bf16[4,4]{1,0}, s8[1000]{0}) custom-call(%x.1, %x.1), custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["1"]}}}
  %product = (bf16[4,16]{1,0}, s8[1000]{0}) fusion(%w.1, %x.1), kind=kCustom, calls=%called
  %y = bf16[4,16]{1,0} get-tuple-element(%product), index=0
  ROOT %twice = bf16[4,16]{1,0} fusion(%y), kind=kLoop, calls=%added, metadata={op_name="jit(step)/transpose(jvp(S))/encoder/add"}
}
"""  # noqa: E501


def test_calls_of_a_gpus_libraries():
    found = cost(GPU_PROGRAM, 1)
    convolution, products = 2 * 2 * 4 * 4 * 8 * 9 * 4, 2 * 4 * 8 * 4 + 2 * 4 * 8 * 16
    assert found.flops == convolution + products
    assert cost(GPU_PROGRAM.replace("convForward", "convBiasActivationForward"), 1).flops == found.flops
    numbers = (2 * 6 * 6 * 4 + 8 * 9 * 4 + 2 * 4 * 4 * 8) + (2 * 4 * 8 + 4 * 4) + (8 * 16 + 4 * 8 + 4 * 16)
    assert found.passes == {"backward encoder": 2 * 2 * 4 * 16}
    assert found.bytes == 2 * numbers + found.passes["backward encoder"]


# A layer's kernel is taken from the stack behind a conversion and in a fusion of its own, and its result put
# into another stack.
CUTTING_PROGRAM = """HloModule step

%inner (p: bf16[8,4,4], i: s32[]) -> bf16[1,4,4] {
  %p = bf16[8,4,4]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %piece = bf16[1,4,4]{2,1,0} dynamic-slice(%p, %i, %zero, %zero), dynamic_slice_sizes={1,4,4}
}

%outer (q: s32[], stack: f32[8,4,4], kept: bf16[8,4,4]) -> bf16[8,4,4] {
  %q = s32[] parameter(0)
  %stack = f32[8,4,4]{2,1,0} parameter(1)
  %kept = bf16[8,4,4]{2,1,0} parameter(2)
  %narrow = bf16[8,4,4]{2,1,0} convert(%stack)
  %cut = bf16[1,4,4]{2,1,0} fusion(%narrow, %q), kind=kLoop, calls=%inner
  %none = s32[] constant(0)
  ROOT %put = bf16[8,4,4]{2,1,0} dynamic-update-slice(%kept, %cut, %q, %none, %none)
}

ENTRY %main (n: s32[], w: f32[8,4,4], kept: bf16[8,4,4]) -> bf16[8,4,4] {
  %n = s32[] parameter(0)
  %w = f32[8,4,4]{2,1,0} parameter(1)
  %kept.1 = bf16[8,4,4]{2,1,0} parameter(2)
  ROOT %next = bf16[8,4,4]{2,1,0} fusion(%n, %w, %kept.1), kind=kLoop, calls=%outer
}
"""


def test_of_a_stack_only_the_layer_is_read_and_written():
    """Also by a fusion beside which the program goes on, as GPU programs have them."""
    assert cost(CUTTING_PROGRAM, 1).bytes == 4 + 16 * 4 + 16 * 2
    line = next(line for line in CUTTING_PROGRAM.splitlines() if "%next" in line)
    stack = "bf16[8,4,4]{2,1,0}"
    start = line.replace("ROOT %next", "%start").replace("fusion(", "fusion-start(")
    start = start.replace(f"= {stack}", f"= ((s32[], f32[8,4,4]{{2,1,0}}, {stack}), {stack})")
    done = f"  ROOT %next = {stack} fusion-done(%start)"
    assert cost(CUTTING_PROGRAM.replace(line, f"{start}\n{done}"), 1).bytes == 4 + 16 * 4 + 16 * 2


def test_what_is_known_of_gpus():
    assert set(GPUS) < set(CHIPS)
    assert f"device_memory_size: {CHIPS['h100'].memory}" in target_config("h100")


def test_seconds_on_a_chip():
    """A ring of four sends 2 x 3/4 of an array to reduce it, 3/4 to gather it."""
    assert link_bytes("all-reduce", 4, 100.0) == 150 and link_bytes("all-gather", 4, 100.0) == 75
    assert link_bytes("collective-permute", 2, 100.0) == 100
    chip = CHIPS["v5e"]
    reduced = {("all-reduce", 2, "x"): (1, chip.links)}
    work = Cost(chip.flops, 2 * chip.bandwidth, {"x": chip.bandwidth / 2}, 0.0, reduced)
    assert seconds(work, chip) == pytest.approx(
        dict(compute=1, memory=2, passes=0.5, links=1, chip=1.5, step=2.5)
    )


def dryrun(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.dryrun.dryrun", *arguments],
        capture_output=True, text=True, timeout=300, cwd=ROOT,
    )  # fmt: skip


def test_the_tool_on_virtual_devices(tmp_path):
    out = tmp_path / "numbers.json"
    done = dryrun(
        f"--config={TINY}", "--mesh=2,2", f"--json={out}", "--config.train.batch=8",
        "--config.teacher.enabled=False", "--config.views.local_count=0", "--config.loss.cls_local=0.0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["chips"] == 4 and found["mesh"] == {"data": 2, "fsdp": 2} and found["batch"] == 8
    assert found["flops"] > 0 and found["memory"]["peak"] > found["memory"]["arguments"] > 0
    # The old state's memory becomes the new one's: what comes out beside it are scalars and a pointer each.
    assert 0 <= found["memory"]["outputs"] - found["memory"]["reused"] < 0.02 * found["memory"]["outputs"]
    # One layer in each trunk: every kernel of the encoder, 16 x (48 + 16 + 32 + 32) numbers of four bytes, is
    # gathered once by the image and once by the masked views.
    (encoder,) = (
        c for c in found["collectives"] if (c["kind"], c["part"]) == ("all-gather", "forward encoder")
    )
    assert encoder["group"] == 2 and encoder["bytes"] == encoder["count"] * 4 * 16 * 128 / 4
    assert "of the CPU program" in done.stdout and "all-gather" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "give --config=configs/NAME.py"),
        ((f"--config={TINY}", "--topology=v9:4x4"), "v9:4x4 is unknown"),
        ((f"--config={TINY}", "--topology=h100:1x1"), 'pip install "jax[cuda13]"'),
        ((f"--config={TINY}", "--mesh=4"), "--mesh=4 is not a mesh"),
        ((f"--config={TINY}", "--mesh=2,1", "--json=nowhere/x.json"), "its folder does not exist"),
        ((f"--config={TINY}", "--mesh=3,1"), "config.train.batch=4 is not a multiple"),
    ],
)
def test_wrong_input_is_one_sentence(arguments, sentence):
    done = dryrun(*arguments)
    assert done.returncode == 1 and done.stderr.startswith("error: ") and sentence in done.stderr
    assert "Traceback" not in done.stderr and len(done.stderr.strip().splitlines()) == 1


@pytest.mark.fast
def test_the_scaling_table_has_a_row_for_every_topology(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["scaling_table.py"])
    scaling_table.main()
    header, rule, *rows = capsys.readouterr().out.strip().splitlines()
    files = sorted(scaling_table.RESULTS.glob("*_v[456]*.json"))
    assert len(rows) == len(files) > 0
    assert {line.count("|") for line in (header, rule, *rows)} == {13}
    result = json.loads((scaling_table.RESULTS / "b16_v5e_16x16.json").read_text())
    row = next(line for line in rows if line.startswith("| b16, v5e:16x16"))
    assert f"| {result['memory']['peak'] / 2**30:.2f} |" in row and "| 256, 1 | none, 1 |" in row


def test_the_pod_table_says_what_hosts_read_decode_and_save(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pod_table"])
    pod_table.main()
    rows = [line.strip("|").split("|") for line in capsys.readouterr().out.strip().splitlines()]
    assert len({len(row) for row in rows}) == 1
    values = {tuple(cell.strip() for cell in row[:2]): [float(cell) for cell in row[2:]] for row in rows[2:]}
    hosts, speed, hours, each, mb, cores, gb, part = values["b16", "8 x H100"]
    assert hosts == 1 and speed == pytest.approx(8 * 384.6, abs=1) and each == speed
    assert hours == pytest.approx(150 * 563 * 2048 / speed / 3600, abs=0.06)
    assert mb == pytest.approx(speed * 0.1154, rel=0.01) and cores == pytest.approx(speed / 533, abs=0.06)
    # B/16 with decoder and heads: 119 million parameters, each with Adam's two moments, in float32.
    assert gb == 1.4 and part == pytest.approx(1434, abs=5)
    hosts, speed, _, each, *_, part = values["h14", "v5e:16x16"]
    assert hosts == 64 and speed == 3349 and each == 52 and part == pytest.approx(8026 / 64, abs=1)
