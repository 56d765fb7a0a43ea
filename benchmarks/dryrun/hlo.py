"""Read the text of a compiled XLA program: its instructions, and how often each of them runs.

XLA's own cost analysis counts the body of a loop once, so that a scan over 32 layers looks like one layer.
Here every instruction counts as often as the loops around it run.
"""

import collections
import dataclasses
import math
import re

import numpy as np

BYTES = dict(
    pred=1, s4=0.5, u4=0.5, s8=1, u8=1, s16=2, u16=2, bf16=2, f16=2, s32=4, u32=4, f32=4, s64=8, u64=8, f64=8,
    f8e4m3fn=1, f8e5m2=1, c64=8, c128=16, token=0,
)  # fmt: skip
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# Instructions without memory traffic of their own: they name or regroup arrays, or run another computation.
FREE = (
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call",
    "after-all", "partition-id", "replica-id", "opt-barrier",
)  # fmt: skip
HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
LINE = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][a-z0-9\-]*)\((.*)$")
ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\](\{[^}]*\})?")
SCRATCH = re.compile(r", [su]8\[\d+\](\{[^}]*\})?(?=\))")  # a library's scratch memory, after its results


@dataclasses.dataclass
class Instruction:
    """One line of a program."""

    name: str
    shape: str  # as text
    opcode: str
    operands: list[str]  # names
    rest: str  # all that follows the operands
    root: bool  # whether it is its computation's result

    def attribute(self, name: str) -> str:
        found = re.search(rf"\b{name}=(\{{[^}}]*\}}|[^,\s]+)", self.rest)
        return found[1] if found else ""


@dataclasses.dataclass
class Program:
    """A program's computations and instructions by name."""

    computations: dict[str, list[Instruction]]
    instructions: dict[str, Instruction]
    runs: dict[str, int]  # how often each computation runs per step
    fused: set[str]  # computations within fusions

    def shape_of(self, name: str) -> str:
        return self.instructions[name].shape


def dimensions(text: str) -> list[int]:
    """Sizes of the first array in a shape's text."""
    return [int(n) for n in ARRAY.search(text)[2].split(",") if n]


def size(text: str, only_main_memory: bool = False) -> float:
    """Bytes of all arrays in a shape's text; `only_main_memory`: without those in on-chip memory, S(1)."""
    return sum(
        BYTES[kind] * math.prod(int(n) for n in dims.split(",") if n)
        for kind, dims, layout in ARRAY.findall(text)
        if not (only_main_memory and "S(1)" in layout)
    )


def trip_count(loop: Instruction, computations: dict) -> int:
    """How often a while loop runs: XLA's annotation, or else the constant in its condition."""
    if known := re.search(r'known_trip_count[^\d]*"?n"?[^\d]*(\d+)', loop.rest):
        return int(known[1])
    condition = computations[loop.attribute("condition").lstrip("%")]
    bounds = [int(m[1]) for i in condition if i.opcode == "constant" and (m := re.match(r"(\d+)\)", i.rest))]
    if len(bounds) != 1:
        raise ValueError(f"the bound of loop {loop.name} is not in its condition")
    return bounds[0]


def called(instruction: Instruction) -> list[str]:
    """Names of the computations that an instruction runs, except for scalar reducers."""
    attributes = ("body", "condition", "calls", "true_computation", "false_computation")
    names = [instruction.attribute(name) for name in attributes]
    if instruction.opcode == "call":
        names.append(instruction.attribute("to_apply"))
    names += instruction.attribute("branch_computations").strip("{}").split(",")
    return [name.strip().lstrip("%") for name in names if name.strip()]


def parse(text: str) -> Program:
    """Read the text of a compiled program (`compiled.as_text()`); all branches of a conditional count.

    In GPU programs, asynchronous fusions become ordinary ones, and the results of library calls lose their
    scratch memory.
    """
    computations, entry, current = {}, "", []
    for line in text.splitlines():
        if header := HEADER.match(line):
            current = computations[header[2]] = []
            entry = header[2] if header[1] else entry
        elif found := LINE.match(line):
            root, name, shape, opcode, rest = found.groups()
            operands = re.findall(r"%([\w.\-]+)", rest.split("), ")[0])
            shape = SCRATCH.sub("", shape) if opcode == "custom-call" else shape
            current.append(Instruction(name, shape, opcode, operands, rest, bool(root)))
    for fusion in [i for lines in computations.values() for i in lines if i.opcode.startswith("fusion")]:
        if fusion.opcode == "fusion-done":
            continue
        inner = computations[fusion.attribute("calls").lstrip("%")]
        result = next(i for i in inner if i.root)
        if fusion.opcode == "fusion-start" or result.opcode == "custom-call":
            fusion.opcode, fusion.shape = "fusion", result.shape
    runs, fused = collections.Counter(), set()

    def visit(name: str, times: int) -> None:
        runs[name] += times
        for instruction in computations[name]:
            inner = times * (trip_count(instruction, computations) if instruction.opcode == "while" else 1)
            for other in called(instruction):
                if instruction.opcode == "fusion" or name in fused:
                    fused.add(other)
                visit(other, inner)

    visit(entry, 1)
    instructions = {i.name: i for lines in computations.values() for i in lines}
    return Program(computations, instructions, dict(runs), fused)


def flops(program: Program, instruction: Instruction) -> float:
    """Floating-point operations of a matrix product or convolution, two per multiply-add; 0 for others.

    Calls of cuBLAS and of cuDNN's forward convolutions count, kernels of attention do not.
    """
    target = instruction.attribute("custom_call_target").strip('"')
    if instruction.opcode == "dot" or target.startswith("__cublas$"):
        contracted = r'lhs_contracting_dim(?:ension)?s"?[=:][{\[]([^}\]]*)'
        axes = re.findall(r"\d+", re.search(contracted, instruction.rest)[1])
        lhs = dimensions(program.shape_of(instruction.operands[0]))
        return 2 * math.prod(dimensions(instruction.shape)) * math.prod(lhs[int(a)] for a in axes)
    if instruction.opcode != "convolution" and not re.match(r"__cudnn\$conv(BiasActivation)?Forward", target):
        return 0
    labels = re.split(r"_|->", instruction.attribute("dim_labels"))
    shapes = [program.shape_of(n) for n in instruction.operands[:2]] + [instruction.shape]
    sizes = (zip(label, dimensions(shape), strict=True) for label, shape in zip(labels, shapes, strict=True))
    lhs, rhs, out = map(dict, sizes)
    window = dict(re.findall(r"(\w+)=(\S+)", instruction.attribute("window").strip("{}")))
    total = 2 * out["b"] * out["f"] * rhs["i"]
    for axis, count in enumerate(map(int, filter(None, window.get("size", "").split("x")))):

        def setting(name, default, axis=axis):
            return window[name].split("x")[axis] if name in window else default

        # The TPU compiler writes batched products as dilated convolutions; only taps that meet data count.
        stride, dilate, holes = (int(setting(n, 1)) for n in ("stride", "rhs_dilate", "lhs_dilate"))
        low = int(setting("pad", "0_0").split("_")[0])
        at = np.arange(out[str(axis)])[:, None] * stride + np.arange(count) * dilate - low
        total *= int(np.sum((at >= 0) & (at <= (lhs[str(axis)] - 1) * holes) & (at % holes == 0)))
    return total
