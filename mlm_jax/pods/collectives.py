"""Collectives of a compiled step: kind, mesh axes, number and size."""

import math
import re
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from jax.sharding import Mesh

from mlm_jax.pods.hlo import Computation, Instruction, Module

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")
# With several slices, traffic between them is a send to the other hosts.
_MEGASCALE = re.compile(r'_xla_megascale_transfer_type="(\w+)"')


@dataclass(frozen=True)
class Collective:
    """A collective instruction of the compiled step."""

    kind: str
    axes: tuple[str, ...]
    """Mesh axes along which the devices of a group differ."""
    crosses_slices: bool
    group_size: int
    count: int
    """Number of executions per step."""
    bytes: int
    """Size of the whole array per execution: the gathered result, or the reduced or exchanged operand."""
    operands: tuple[tuple[int, ...], ...]
    """Dimensions of every operand."""

    @property
    def received_bytes(self) -> float:
        """Bytes that a device receives per execution of a bandwidth-optimal ring (Patarasuk & Yuan 2009)."""
        if self.kind == "collective-permute":
            return float(self.bytes)
        share = (self.group_size - 1) / self.group_size
        return self.bytes * share * (2 if self.kind == "all-reduce" else 1)


def collectives_of(module: Module, mesh: Mesh, slices: int = 1) -> list[Collective]:
    """Returns every collective of a step, in the order of the text.

    Args:
        module: a step that was compiled for `mesh`.
        mesh: its first axis is ordered by slice.
        slices: number of slices that the mesh spans.

    Raises:
        ValueError: a collective is in a loop with an unknown trip count.
    """
    devices = _Devices(mesh, slices, module.num_partitions)
    found: dict[object, Collective] = {}
    for computation, instruction, times in module.executed():
        collective = _collective(computation, instruction, times, devices)
        if collective is None or collective.group_size < 2:
            continue
        if math.isnan(times):
            raise ValueError(f"{instruction.name}: in a loop of unknown length")
        # TPU splits a collective over several fused computations, and each of them shows the whole collective.
        channel = re.search(r"\bchannel_id=(\d+)", instruction.attributes)
        key = (channel[1], instruction.opcode) if channel else (computation.name, instruction.name)
        if key not in found or found[key].count < collective.count:
            found[key] = collective
    return list(found.values())


class _Devices:
    """Maps groups of the module's device numbers to mesh axes."""

    def __init__(self, mesh: Mesh, slices: int, partitions: int) -> None:
        shape = list(mesh.devices.shape)
        self.names, self.slices = mesh.axis_names, slices
        self.within_slice = partitions < mesh.size
        if self.within_slice:
            shape[0] //= slices
        self.coordinates = np.stack(np.unravel_index(np.arange(math.prod(shape)), shape), axis=-1)
        self.slice_rows = shape[0] if self.within_slice else shape[0] // slices

    def axes(self, groups: np.ndarray) -> tuple[tuple[str, ...], bool]:
        """Returns the mesh axes that vary within the groups [groups, size], and True if a group crosses slices."""
        coordinates = self.coordinates[groups]
        varies = (coordinates != coordinates[:, :1]).any(axis=(0, 1))
        rows = coordinates[..., 0] // self.slice_rows
        names = tuple(name for name, moves in zip(self.names, varies, strict=True) if moves)
        return names, bool((rows != rows[:, :1]).any())


def _collective(
    computation: Computation, instruction: Instruction, times: float, devices: _Devices
) -> Collective | None:
    operands = [computation.instructions[name] for name in instruction.operands]
    count = 0 if math.isnan(times) else round(times)
    size = sum(operand.bytes for operand in operands)
    dims = tuple(shape.dims for operand in operands for shape in operand.shapes)
    megascale = _MEGASCALE.search(instruction.attributes)
    if instruction.opcode == "send" and megascale:
        kind = megascale[1].lower().replace("_", "-")
        size = operands[0].bytes
        return Collective(kind, devices.names[:1], True, devices.slices, count, size, dims[:1])
    kind = instruction.opcode.removesuffix("-start")
    if kind not in KINDS:
        return None
    groups = device_groups(instruction.attributes, len(devices.coordinates))
    axes, crosses = devices.axes(groups)
    if kind == "all-gather":
        size *= groups.shape[1]
    if kind == "all-reduce" and _is_scattered(computation, instruction):
        kind = "reduce-scatter"
    return Collective(kind, axes, crosses, groups.shape[1], count, size, dims)


def _is_scattered(computation: Computation, all_reduce: Instruction) -> bool:
    """Returns True if a fusion keeps only the device's part of the sum, which is how TPU expresses a reduce-scatter."""
    root = computation.through(computation.root)
    if root.opcode != "dynamic-slice" or len(computation.instructions) > 20:
        return False
    return computation.through(root.operands[0]).name == all_reduce.name


def device_groups(attributes: str, num_devices: int) -> np.ndarray:
    """Returns the device numbers [groups, size] in a collective's attributes.

    XLA's notations are lists `{{0,1},{2,3}}`, iota `[2,2]<=[4]` with an optional transposition `T(1,0)`, named axes
    of a mesh `mesh['a'=2,'b'=2] {'a'}`, and the pairs of a permutation.

    Raises:
        ValueError: the notation is unknown.
    """
    pairs = re.search(r"source_target_pairs=\{((?:\{\d+,\d+\},?)*)\}", attributes)
    listed = pairs or re.search(r"replica_groups=\{((?:\{[\d,]*\},?)*)\}", attributes)
    if listed:
        groups = [[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", listed[1])]
        return np.array(groups) if groups else np.arange(num_devices)[None]
    iota = re.search(r"replica_groups=\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", attributes)
    if iota:
        return _iota(iota[2]).reshape(_ints(iota[1]))
    named = re.search(
        r"replica_groups=@?(?:\w+)?mesh\[([^\]]*)\](?:,? ?device_ids=\((.*?\)|[^)]*)\))? \{([^}]*)\}",
        attributes,
    )
    if named:
        return _named_groups(named[1], named[2], named[3])
    raise ValueError(f"no device groups in {attributes[:200]!r}")


def _named_groups(mesh: str, device_ids: str | None, axes: str) -> np.ndarray:
    """Returns groups along some axes, or parts of axes `'a':(before)size`, of a mesh with named axes."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    count = math.prod(sizes.values())
    if device_ids is None:
        numbers = np.arange(count)
    elif "[" in device_ids:
        numbers = _iota(device_ids).reshape(-1)
    else:
        numbers = np.array(_ints(device_ids))
    shape: list[int] = []
    grouped: list[int] = []
    wanted: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for name, before, size in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes):
        wanted[name].append((int(before or 1), int(size or sizes[name])))
    for name, size in sizes.items():
        done = 1
        for before, part in sorted(wanted[name]):
            shape += [before // done, part]
            grouped.append(len(shape) - 1)
            done = before * part
        shape.append(size // done)
    grid = numbers.reshape(shape)
    rest = [axis for axis in range(len(shape)) if axis not in grouped]
    return grid.transpose(rest + grouped).reshape(-1, math.prod(shape[axis] for axis in grouped))


def _iota(text: str) -> np.ndarray:
    """Evaluates `[4,4]T(1,0)`: consecutive numbers from 0 in that shape, transposed."""
    dims = _ints(re.search(r"\[([\d,]+)\]", text)[1])  # type: ignore[index]
    numbers = np.arange(math.prod(dims)).reshape(dims)
    transposed = re.search(r"T\(([\d,]+)\)?", text)
    return numbers.transpose(_ints(transposed[1])) if transposed else numbers


def _ints(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]
