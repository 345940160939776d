"""Report on a compiled step: memory, FLOPs and collectives per chip, and lower bounds of its time."""

from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

import jax

from mlm_jax.pods.collectives import Collective, collectives_of
from mlm_jax.pods.costs import matmul_flops, memory_bytes
from mlm_jax.pods.hlo import parse
from mlm_jax.step.chips import Chip, chip_of, peak_flops
from mlm_jax.step.program import Program, device_bytes, peak_bytes

_LINKS, _NETWORK = "links", "network"


@dataclass(frozen=True, kw_only=True)
class CollectiveTotal:
    """Total of all collectives of one kind over the same mesh axes."""

    kind: str
    axes: str
    """Mesh axes, such as "data × fsdp", followed by "(between slices)" if a group has devices of several slices."""
    count: int
    """Number of collectives per step."""
    bytes: int
    """Size of the whole arrays gathered, reduced or exchanged per step."""
    received_bytes: float
    """Bytes that a chip receives per step with ring algorithms."""


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """Report on a compiled train step. Bytes and FLOPs are per device and step, times in seconds.

    Each time is a lower bound for a single resource at the chip's published peak, or None if the peak is unknown.
    """

    device_kind: str
    num_devices: int
    mesh: dict[str, int]
    slices: int
    batch_size: int
    accumulation_steps: int
    remat: str
    parameter_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    """Size of XLA's temporary buffers: activations stored for the backward pass, gradients, work space."""
    peak_bytes: int
    memory_bytes: int | None
    """Memory of the chip."""
    flops: float
    """FLOPs of matrix products, including rematerialization."""
    traffic_bytes: float
    """Bytes between the chip and its memory if each fusion reads and writes once."""
    collectives: tuple[CollectiveTotal, ...]
    seconds: dict[str, float | None]
    """Lower bounds for `compute`, `memory`, `links` (ICI or NVLink) and `network` (DCN)."""
    compile_seconds: float

    @property
    def bottleneck(self) -> str | None:
        """Name of the longest known time."""
        known = {name: time for name, time in self.seconds.items() if time is not None}
        return max(known, key=lambda name: known[name]) if known else None

    @property
    def fits(self) -> bool:
        """True if the peak is within the chip's memory, or if the memory is unknown."""
        return self.memory_bytes is None or self.peak_bytes <= self.memory_bytes

    def as_json(self) -> dict[str, Any]:
        """Returns all fields as plain values."""
        return asdict(self) | {"fits": self.fits, "bottleneck": self.bottleneck}


def report_step(
    program: Program, compiled: jax.stages.Compiled, *, chip_kind: str | None, compile_seconds: float
) -> StepReport:
    """Returns the report on `program`'s train step; `chip_kind` overrides the chip it was compiled for."""
    mesh, config, plan, text = program.mesh, program.config, compiled.memory_analysis(), compiled.as_text()
    # Both are available on CPU, GPU and TPU.
    assert plan is not None
    assert text is not None
    kind = chip_kind or mesh.devices.flat[0].device_kind
    chip, slices = chip_of(kind), config.mesh.dcn_data
    module = parse(text)
    collectives = collectives_of(module, mesh, slices)
    flops, traffic = matmul_flops(module), memory_bytes(module)
    return StepReport(
        device_kind=kind,
        num_devices=mesh.size,
        mesh=dict(mesh.shape),
        slices=slices,
        batch_size=config.batch_size,
        accumulation_steps=config.accumulation_steps,
        remat=config.compute.remat,
        parameter_bytes=device_bytes(program.abstract_state.params),
        optimizer_bytes=device_bytes(program.abstract_state.opt_state),
        activation_bytes=plan.temp_size_in_bytes,
        peak_bytes=peak_bytes(plan),
        memory_bytes=chip.memory_bytes if chip else None,
        flops=flops,
        traffic_bytes=traffic,
        collectives=totals(collectives),
        seconds=_seconds(chip, peak_flops(kind, config.compute.dtype), flops, traffic, collectives, slices),
        compile_seconds=compile_seconds,
    )


def totals(collectives: list[Collective]) -> tuple[CollectiveTotal, ...]:
    """Sums the collectives by kind and axes, largest first."""
    groups: dict[tuple[str, str], list[Collective]] = defaultdict(list)
    for one in collectives:
        axes = " × ".join(one.axes) + (" (between slices)" if one.crosses_slices else "")
        groups[one.kind, axes].append(one)
    summed = [
        CollectiveTotal(
            kind=kind,
            axes=axes,
            count=sum(one.count for one in group),
            bytes=sum(one.count * one.bytes for one in group),
            received_bytes=sum(one.count * one.received_bytes for one in group),
        )
        for (kind, axes), group in groups.items()
    ]
    return tuple(sorted(summed, key=lambda total: -total.bytes))


def _seconds(
    chip: Chip | None,
    peak: float | None,
    flops: float,
    traffic: float,
    collectives: list[Collective],
    slices: int,
) -> dict[str, float | None]:
    received = {_LINKS: 0.0, _NETWORK: 0.0}
    for one in collectives:
        for where, amount in _received(one, slices).items():
            received[where] += one.count * amount
    memory, links, network = (
        (chip.memory_bandwidth, chip.link_bandwidth, chip.network_bandwidth) if chip else (None,) * 3
    )
    return {
        "compute": flops / peak if peak else None,
        "memory": traffic / memory if memory else None,
        _LINKS: received[_LINKS] / links if links else None,
        _NETWORK: received[_NETWORK] / network if network and slices > 1 else None,
    }


def _received(one: Collective, slices: int) -> dict[str, float]:
    """Returns the bytes that a device receives over its links and over the network.

    A group with devices of several slices is assumed to work within each slice first, so that the network carries only
    each device's share.
    """
    if not one.crosses_slices:
        return {_LINKS: one.received_bytes}
    within = max(1, one.group_size // slices)
    share = (slices - 1) / slices
    rounds = 2 if one.kind == "all-reduce" else 1
    inside = rounds * one.bytes * (within - 1) / within if within > 1 else 0.0
    return {_LINKS: inside, _NETWORK: rounds * one.bytes / within * share}


def describe(report: StepReport) -> str:
    """Formats the report as lines of text."""
    mesh = ", ".join(f"{axis} {size}" for axis, size in report.mesh.items())
    slices = f" in {report.slices} slices" if report.slices > 1 else ""
    lines = [
        f"{report.num_devices} × {report.device_kind}{slices}; mesh: {mesh}",
        f"{report.batch_size:,} rows per step, {report.accumulation_steps} microbatches; remat {report.remat}; "
        f"compiled in {report.compile_seconds:.0f} s",
        "",
        "memory per chip",
        f"  parameters           {_size(report.parameter_bytes)}",
        f"  optimizer            {_size(report.optimizer_bytes)}",
        f"  activations, work    {_size(report.activation_bytes)}",
        f"  peak                 {_size(report.peak_bytes)} of {_size(report.memory_bytes).strip()}",
        "",
        f"FLOPs per step         {report.flops * report.num_devices:.4g} ({report.flops:.4g} per chip)",
        f"memory traffic         {_size(report.traffic_bytes)} per chip",
        "",
        "collectives per step   count           size  received per chip",
    ]
    lines += [
        f"  {total.kind:<18} {total.count:>7} {_size(total.bytes):>14}   {_size(total.received_bytes):>16}"
        f"  {total.axes}"
        for total in report.collectives
    ] or ["  none"]
    lines += ["", "lower bounds of the step time, for each resource at its peak"]
    lines += [f"  {name:<20} {_time(seconds)}" for name, seconds in report.seconds.items()]
    lines += [f"  bottleneck           {report.bottleneck or 'not known'}"]
    return "\n".join(lines)


ROW_HEADER = (
    "| chips | mesh | rows | remat | parameters | optimizer | activations | peak | of | TFLOP per chip | "
    "received per chip | compute | memory | links | network | bottleneck | compiled in |\n"
    + "| --- " * 17
    + "|"
)


def row(report: StepReport) -> str:
    """Formats the report as one row under ROW_HEADER."""
    mesh = " × ".join(f"{axis} {size}" for axis, size in report.mesh.items() if size > 1) or "one chip"
    received = sum(total.received_bytes for total in report.collectives)
    cells = [
        f"{report.num_devices} {report.device_kind}" + f", {report.slices} slices" * (report.slices > 1),
        mesh,
        f"{report.batch_size:,}",
        report.remat,
        *map(_size, (report.parameter_bytes, report.optimizer_bytes, report.activation_bytes)),
        *map(_size, (report.peak_bytes, report.memory_bytes)),
        f"{report.flops / 1e12:.2f}",
        _size(received),
        *(_time(report.seconds[part]) for part in ("compute", "memory", _LINKS, _NETWORK)),
        report.bottleneck or "",
        f"{report.compile_seconds:.0f} s",
    ]
    return "| " + " | ".join(cell.strip() for cell in cells) + " |"


def _size(number: float | None) -> str:
    if number is None:
        return "not known"
    return f"{number / 2**30:,.2f} GiB" if number >= 2**30 else f"{number / 2**20:,.1f} MiB"


def _time(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds * 1000:.2f} ms"
