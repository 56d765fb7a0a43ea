"""Work, memory traffic and collectives of a compiled program, per step and chip, with all loop iterations."""

import collections
import dataclasses
import math
import re

from benchmarks.dryrun.hlo import COLLECTIVES, FREE, Instruction, Program, called, flops, parse, size


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of one step on one chip."""

    flops: float  # of matrix products and convolutions, two per multiply-add, including recomputation
    bytes: float  # read from and written to the chip's main memory
    passes: dict[str, float]  # part of the model -> bytes outside of products, convolutions and library calls
    cycles: float  # the compiler's estimate for all but collectives; 0 if it makes none (CPU)
    # (kind, chips in a group, part of the model) -> (count, bytes)
    collectives: dict[tuple[str, int, str], tuple[int, float]]


def group_size(instruction: Instruction, devices: int) -> int:
    """Chips that take part in one group of a collective."""
    rest = instruction.rest
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", rest):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", found[1]))
        return math.prod(int(sizes[name]) for name in re.findall(r"'([^']+)'", found[2]))
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(found[1])
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return len(found[1].split(","))
    return 2 if "source_target_pairs" in rest else devices  # pairs: a permutation; no groups: all devices


def purpose(instruction: Instruction) -> str:
    """Forward or backward pass and the part of the model, from the operation's name in the Python program."""
    found = re.search(r'op_name="([^"]*)"', instruction.rest)
    if found is None:
        return "made by the compiler"  # a part of a collective that it has split
    name = found[1]
    parts = [part for part in ("encoder", "decoder", "tokenizer", "sparse_head", "cls_head") if part in name]
    return f"{'backward' if 'transpose(' in name else 'forward'} {parts[0] if parts else 'other'}"


def collective(program: Program, instruction: Instruction) -> tuple[str, float] | None:
    """(kind, bytes of the whole array on one chip) of a collective; None for any other instruction."""
    kind = instruction.opcode.removesuffix("-start")
    if kind not in COLLECTIVES:
        return None
    operands = sum(size(program.shape_of(name)) for name in instruction.operands)
    result = size(instruction.shape)
    if instruction.opcode.endswith("-start") and kind != "all-reduce":
        result -= operands  # its shape is the pair (operands, result)
    return kind, max(operands, result)


def read_shares(program: Program, name: str) -> list[float]:
    """The share of each parameter's elements that a fused computation reads.

    A fusion computes only the elements that its result needs: of an array that it slices, and of all from
    which this is computed, the slice; of an array that it updates in place, none.
    """
    lines = program.computations[name]
    needed = collections.Counter({line.name: 1.0 for line in lines if line.root})
    for line in reversed(lines):  # users come after what they use
        share = min(1.0, needed[line.name])
        if line.opcode == "fusion":
            parts = read_shares(program, line.attribute("calls").lstrip("%"))
        else:
            parts = [1.0] * len(line.operands)
            if line.opcode in ("slice", "dynamic-slice", "gather"):
                parts[0] = size(line.shape) / size(program.shape_of(line.operands[0]))
            elif line.opcode == "dynamic-update-slice":
                parts[0] = 0.0
        for operand, part in zip(line.operands, parts, strict=True):
            needed[operand] += share * part
    parameters = [line for line in lines if line.opcode == "parameter"]
    parameters.sort(key=lambda line: int(re.match(r"\d+", line.rest)[0]))
    return [min(1.0, needed[line.name]) for line in parameters]


def touched(program: Program, fusion: Instruction) -> float:
    """Bytes that a fusion reads and writes; of arrays that it slices or updates, those of the slice."""
    name = fusion.attribute("calls").lstrip("%")
    lines, shares = program.computations[name], read_shares(program, name)
    sizes = [size(program.shape_of(operand), True) for operand in fusion.operands]
    read = sum(whole * part for whole, part in zip(sizes, shares, strict=True))
    written = size(fusion.shape, True)
    for line in lines:
        if line.opcode == "dynamic-update-slice":
            written -= min(written, size(line.shape) - size(program.shape_of(line.operands[1])))
    return read + written


def traffic(program: Program, instruction: Instruction) -> float:
    """Bytes that an instruction reads from and writes to main memory."""
    opcode = instruction.opcode
    if opcode in FREE or opcode.endswith("-done"):
        return 0.0
    if opcode == "fusion":
        return touched(program, instruction)
    result = size(instruction.shape, True)
    if opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * result
    if opcode == "dynamic-update-slice":
        return 2 * size(program.shape_of(instruction.operands[1]), True)
    return result + sum(size(program.shape_of(name), True) for name in instruction.operands)


def computes(program: Program, instruction: Instruction) -> bool:
    """Whether it is or contains a matrix product or convolution, or is a collective or a library's kernel."""
    if instruction.opcode == "custom-call" or instruction.opcode.removesuffix("-start") in COLLECTIVES:
        return True
    inside = [i for name in called(instruction) for i in program.computations[name]]
    return bool(flops(program, instruction)) or any(computes(program, i) for i in inside)


def cost(text: str, devices: int, loops: bool = True) -> Cost:
    """Cost of a compiled program (`compiled.as_text()`) for this number of devices.

    With loops=False, the body of every loop counts once, as in XLA's own analysis.
    """
    program = parse(text)
    work, moved, cycles, seen, passes = 0.0, 0.0, 0.0, set(), collections.Counter()
    found = collections.defaultdict(lambda: (0, 0.0))
    for name, times in program.runs.items():
        times = times if loops else 1
        for line in program.computations[name]:
            work += times * flops(program, line)
            if name not in program.fused:
                through = times * traffic(program, line)
                moved += through
                if through and not computes(program, line):
                    passes[purpose(line)] += through
                estimate = re.search(r'"estimated_cycles":"?(\d+)', line.rest)
                cycles += times * int(estimate[1]) if estimate else 0
            entry, group = collective(program, line), group_size(line, devices)
            channel = line.attribute("channel_id")
            # The TPU compiler spreads one collective over several fusions with the same channel.
            if entry is None or group == 1 or (name in program.fused and channel in seen):
                continue
            seen |= {channel} if name in program.fused else set()
            # An all-reduce of which each chip keeps only its part is a fusion of this name.
            kind = "reduce-scatter" if name.startswith("all-reduce-scatter") else entry[0]
            count, total = found[kind, group, purpose(line)]
            found[kind, group, purpose(line)] = count + times, total + times * entry[1]
    return Cost(work, moved, dict(passes), cycles, dict(found))
