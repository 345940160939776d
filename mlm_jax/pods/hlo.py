"""Parses the text of a compiled XLA module into instructions, each with its number of executions per step.

The text is in XLA's notation (openxla.org/xla/hlo_to_llvm_ir). The parsed parts are the same for CPU, GPU and TPU.
Shapes are per device.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

_ARRAY = re.compile(r"\b([a-z]+[0-9]*(?:e[0-9]m[0-9]\w*)?)\[([0-9,]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_HEADER = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%([\w.\-]+) = ")
# Attributes with the computations that an instruction runs. `to_apply` counts only for `call`.
_CALLED = re.compile(
    r"\b(?:calls|to_apply|true_computation|false_computation)=%([\w.\-]+)|branch_computations=\{([^}]*)\}"
)


@dataclass(frozen=True)
class ArrayShape:
    """An array type, such as `bf16[16,512]`."""

    dtype: str
    dims: tuple[int, ...]
    in_device_memory: bool
    """False in a scratchpad, the TPU's memory space S(1)."""

    @property
    def bytes(self) -> int:
        """Size in bytes without the padding of its layout."""
        if self.dtype == "pred":
            return math.prod(self.dims)
        bits = re.search(r"\d+", self.dtype)
        if bits is None:
            return 0
        return -(-math.prod(self.dims) * int(bits[0]) // 8)


@dataclass(frozen=True)
class Instruction:
    """`%name = shapes opcode(operands), attributes`."""

    name: str
    opcode: str
    shapes: tuple[ArrayShape, ...]
    """Shape of the result; several if it is a tuple."""
    operands: tuple[str, ...]
    attributes: str
    argument: str
    """Text between the parentheses: the index of a parameter, the value of a constant."""

    @property
    def bytes(self) -> int:
        """Size of the result in bytes."""
        return sum(shape.bytes for shape in self.shapes)

    def attribute(self, name: str) -> str | None:
        """Returns the value of `name=` up to the next comma outside braces, or None."""
        found = re.search(rf"\b{name}=(\{{[^}}]*\}}|[^,\s]+)", self.attributes)
        return found[1] if found else None


@dataclass
class Computation:
    """A named list of instructions in textual order."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)
    root: str = ""

    @cached_property
    def users(self) -> dict[str, list[Instruction]]:
        """Maps the name of an instruction to the instructions that use its result."""
        users = defaultdict(list)
        for instruction in self.instructions.values():
            for operand in instruction.operands:
                users[operand].append(instruction)
        return users

    def through(self, name: str) -> Instruction:
        """Returns the instruction `name` or, if it only copies or relabels a result, the source of that result."""
        instruction = self.instructions[name]
        while instruction.opcode in ("bitcast", "copy", "reshape", "transpose") and instruction.operands:
            instruction = self.instructions[instruction.operands[0]]
        return instruction


@dataclass(frozen=True)
class Module:
    """A compiled module of one device, or of one slice if slices communicate through their hosts."""

    computations: dict[str, Computation]
    entry: str
    num_partitions: int

    @cached_property
    def runs(self) -> dict[str, float]:
        """Number of executions of each computation per step; NaN inside a loop with an unknown trip count."""
        runs: dict[str, float] = defaultdict(float)
        self._count(self.entry, 1.0, runs)
        return dict(runs)

    @cached_property
    def fused(self) -> set[str]:
        """Computations inside a fusion, whose intermediate results do not reach memory."""
        return {
            name
            for computation in self.computations.values()
            for instruction in computation.instructions.values()
            if instruction.opcode == "fusion"
            for name in _called(instruction)
        }

    def executed(self) -> Iterator[tuple[Computation, Instruction, float]]:
        """Yields (computation, instruction, executions per step) for every instruction that a step runs."""
        for name, times in self.runs.items():
            computation = self.computations[name]
            for instruction in computation.instructions.values():
                yield computation, instruction, times

    def _count(self, name: str, times: float, runs: dict[str, float]) -> None:
        runs[name] += times
        for instruction in self.computations[name].instructions.values():
            if instruction.opcode == "while":
                trips = self._trips(instruction, self.computations[name])
                # The condition runs once more than the body.
                for part, runs_each in (("body", trips), ("condition", trips + 1)):
                    self._count((instruction.attribute(part) or "").lstrip("%"), times * runs_each, runs)
            # Later parts of an asynchronous operation name the same computation again.
            elif not instruction.opcode.endswith(("-update", "-done")):
                for called in _called(instruction):
                    self._count(called, times, runs)

    def _trips(self, loop: Instruction, computation: Computation) -> float:
        """Returns the trip count of a `while`, from XLA's annotation or from a condition `counter < constant`."""
        annotation = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes)
        if annotation:
            return float(annotation[1])
        condition = self.computations[(loop.attribute("condition") or "").lstrip("%")]
        compare = condition.instructions[condition.root]
        if compare.opcode != "compare" or compare.attribute("direction") != "LT":
            return math.nan
        counter, limit = (condition.through(operand) for operand in compare.operands)
        if counter.opcode != "get-tuple-element" or limit.opcode != "constant":
            return math.nan
        start = computation.instructions[loop.operands[0]]
        if start.opcode == "tuple":
            first = computation.through(start.operands[int(counter.attribute("index") or 0)])
            if first.opcode == "constant":
                return float(int(limit.argument) - int(first.argument))
        return math.nan


def parse(text: str) -> Module:
    """Parses the text of `jax.stages.Compiled.as_text()`."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            current = computations[header[2]] = Computation(header[2])
            entry = header[2] if header[1] else entry
            continue
        found = _INSTRUCTION.match(line)
        if found and current is not None:
            instruction = _instruction(found[2], line[found.end() :])
            current.instructions[instruction.name] = instruction
            if found[1]:
                current.root = instruction.name
    partitions = re.search(r"\bnum_partitions=(\d+)", text[: text.find("\n")])
    return Module(computations, entry, int(partitions[1]) if partitions else 1)


def _instruction(name: str, text: str) -> Instruction:
    """Parses the text after `%name = `: a type, an opcode, operands in parentheses, attributes."""
    end = _closing(text, 0) if text.startswith("(") else text.index(" ")
    opening = text.index("(", end + 1)
    closing = _closing(text, opening)
    argument = text[opening + 1 : closing - 1]
    return Instruction(
        name=name,
        opcode=text[end:opening].strip(),
        shapes=array_shapes(text[:end]),
        operands=tuple(_NAME.findall(argument)),
        attributes=text[closing:],
        argument=argument,
    )


def array_shapes(text: str) -> tuple[ArrayShape, ...]:
    """Returns the arrays of a type, with tuples flattened; tokens have no arrays."""
    return tuple(
        ArrayShape(dtype, tuple(int(d) for d in dims.split(",") if d), "S(1)" not in (layout or ""))
        for dtype, dims, layout in _ARRAY.findall(text)
    )


def _closing(text: str, opening: int) -> int:
    """Returns the position after the parenthesis that closes the one at `opening`."""
    depth = 0
    for position in range(opening, len(text)):
        depth += (text[position] == "(") - (text[position] == ")")
        if depth == 0:
            return position + 1
    raise ValueError(f"no closing parenthesis: {text[:80]}")


def _called(instruction: Instruction) -> list[str]:
    if instruction.opcode not in ("fusion", "call", "conditional", "async-start", "custom-call"):
        return []
    return [
        name
        for one, several in _CALLED.findall(instruction.attributes)
        for name in [one] * bool(one) + _NAME.findall(several)
    ]
