"""Checks that the train step of a config fits chips that are not attached, and finds a change that makes it fit."""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace

import jax

from mlm_jax.config import TrainConfig
from mlm_jax.config.masking import MaskingConfig
from mlm_jax.errors import InputError
from mlm_jax.model.compute import settle
from mlm_jax.parallel.sharding import make_mesh
from mlm_jax.pods.report import StepReport, report_step
from mlm_jax.step.program import Program, build_program, device_bytes


@dataclass(frozen=True)
class DoesNotFit:
    """Result of a step that XLA did not compile because it needs more memory than the chip has."""

    reason: str
    """XLA's message."""


@dataclass(frozen=True)
class Fix:
    """A change of the config that makes its step fit, as command-line flags."""

    flags: str
    report: StepReport


def compile_step(
    config: TrainConfig, devices: list[jax.Device], chip_kind: str | None = None
) -> StepReport | DoesNotFit:
    """Compiles the train step of `config` for `devices`, without data, and returns a report.

    `chip_kind` is the chip that simulated devices represent, as in `jax.Device.device_kind`.

    Raises:
        InputError: the mesh does not divide the devices, the batch or a sharded dimension.
    """
    program = _program(config, devices, chip_kind)
    lowered, start = program.lowered_train, time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return DoesNotFit(re.sub(r"^RESOURCE_EXHAUSTED: ", "", str(error)).splitlines()[0])
    return report_step(program, compiled, chip_kind=chip_kind, compile_seconds=time.monotonic() - start)


def smallest_fix(
    config: TrainConfig,
    devices: list[jax.Device],
    chip_kind: str | None = None,
    memory_bytes: int | None = None,
) -> Fix | None:
    """Returns the first change with which the step compiles and fits, or None.

    Changes that cost the least time come first: rematerialization, more fsdp, more microbatches, then all of them. Each
    change is tried by compiling it, unless its parameters and moments alone exceed `memory_bytes`.
    """
    for flags, candidate in _candidates(config, make_mesh(config.mesh, devices).shape["data"]):
        try:
            program = _program(candidate, devices, chip_kind)
        except InputError:
            continue
        if memory_bytes is not None and device_bytes(program.abstract_state) > memory_bytes:
            continue
        tried = compile_step(candidate, devices, chip_kind)
        if isinstance(tried, StepReport) and tried.fits:
            return Fix(flags, tried)
    return None


def _candidates(config: TrainConfig, data: int) -> Iterator[tuple[str, TrainConfig]]:
    """Yields changes as (flags, changed config); `data` is the size of the mesh axis `data`."""
    stronger = {"none": ("dots", "full"), "dots": ("full",), "full": ()}[config.compute.remat]
    for remat in stronger:
        yield f"--compute.remat {remat}", _with(config, remat=remat)
    most = "full"
    extra = "" if config.compute.remat == most else f"--compute.remat {most} "
    within = data // config.mesh.dcn_data
    splits = [
        {"data": within // factor, "fsdp": config.mesh.fsdp * factor}
        for factor in _doublings(within)
        if within % factor == 0
    ]
    for split in splits:
        yield _mesh_flags(split), _with(config, mesh=split)
    steps = [config.accumulation_steps * factor for factor in _doublings(config.batch_size)]
    for remat, prefix in ((config.compute.remat, ""), (most, extra)) if extra else ((most, ""),):
        for count in steps:
            if config.batch_size % count == 0:
                flags = f"{prefix}--accumulation-steps {count}"
                yield flags, _with(config, remat=remat, accumulation_steps=count)
    for split in splits:
        for count in (config.accumulation_steps, *steps):
            if config.batch_size % count == 0:
                flags = f"{extra}{_mesh_flags(split)} --accumulation-steps {count}"
                yield flags, _with(config, remat=most, accumulation_steps=count, mesh=split)


def _mesh_flags(sizes: dict[str, int]) -> str:
    return " ".join(f"--mesh.{axis} {size}" for axis, size in sizes.items())


def _doublings(limit: int) -> list[int]:
    return [2**power for power in range(1, limit.bit_length()) if 2**power <= limit]


def _with(
    config: TrainConfig,
    accumulation_steps: int | None = None,
    remat: str | None = None,
    mesh: dict[str, int] | None = None,
) -> TrainConfig:
    changed = replace(config, mesh=replace(config.mesh, **(mesh or {})))
    if remat is not None:
        changed = replace(changed, compute=replace(config.compute, remat=remat))  # type: ignore[arg-type]
    return changed if accumulation_steps is None else replace(changed, accumulation_steps=accumulation_steps)


def _program(config: TrainConfig, devices: list[jax.Device], chip_kind: str | None) -> Program:
    if chip_kind is not None:
        # Not what suits the simulated devices, which are CPUs.
        chip = SimpleNamespace(platform="gpu", device_kind=chip_kind)
        config = replace(config, compute=settle(config.compute, config.model, chip)[0])
    masking = stand_in_masking(config)
    # Any special token can represent [SEP].
    sep_token_id = masking.unselectable_token_ids[-1]
    return build_program(config, masking, make_mesh(config.mesh, devices), sep_token_id)


def stand_in_masking(config: TrainConfig) -> MaskingConfig:
    """Completes the masking recipe with placeholder ids; shapes and costs of the step do not depend on them."""
    size, length = config.model.vocabulary_size, config.data.sequence_length
    return MaskingConfig(
        **vars(config.masking) | {"mask_selection_length": config.masking.selection_length(length)},
        vocabulary_size=size,
        mask_token_id=min(4, size - 1),
        unselectable_token_ids=tuple(range(min(4, size))),
        document_end_id=min(3, size - 1) if config.masking.quota == "document" else None,
    )
