"""`mlm-jax compile-check`: compile a config's train step for chips that are not attached."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mlm_jax.commands.config_flags import parse_config_and_flags
from mlm_jax.errors import EXIT_RUN_FAILED, InputError
from mlm_jax.files.json_files import json_text

ABOUT = (
    "Compile a config's train step for chips that are not attached, and print the memory, work and "
    "communication per chip. If the step does not fit, exit with 1 and suggest a change that makes it fit."
)


@dataclass(frozen=True)
class Arguments:
    """The flags of the command; all others are settings of the config."""

    topology: str | None = None
    """TPU slice to compile for, such as v5e:16x16 or v5p:4x4x4; needs the extra `pod`."""
    num_slices: int | None = None
    """Number of slices; by default mesh.dcn_data."""
    devices: int | None = None
    """Number of simulated CPU devices, instead of a topology."""
    chip: str | None = None
    """Chip that each device represents, such as "NVIDIA H100"."""
    json: bool = False
    """Print one JSON object."""
    row: bool = False
    """Print one row of a Markdown table."""


def main(arguments: Sequence[str], prog: str) -> int:
    """Compiles the step and prints a report; returns 1 if the step does not fit."""
    parsed: Arguments
    config, parsed = parse_config_and_flags(arguments, prog, ABOUT, Arguments)
    devices = _devices(parsed, config.mesh.dcn_data)
    # Imported late, so that a mistyped setting is reported before jax starts.
    from mlm_jax.pods.compile_check import DoesNotFit, compile_step, smallest_fix
    from mlm_jax.pods.report import ROW_HEADER, describe, row
    from mlm_jax.step.chips import chip_of

    checked = compile_step(replace(config, compilation_cache_dir=None), devices, parsed.chip)
    if not isinstance(checked, DoesNotFit):
        if parsed.json:
            print(json_text(checked.as_json()))
        else:
            print(f"{ROW_HEADER}\n{row(checked)}" if parsed.row else describe(checked))
        if checked.fits:
            return 0
    chip = chip_of(parsed.chip or devices[0].device_kind)
    fix = smallest_fix(config, devices, parsed.chip, chip.memory_bytes if chip else None)
    return report_misfit(parsed, checked, fix)


def _devices(arguments: Arguments, dcn_data: int) -> list[Any]:
    if (arguments.topology is None) == (arguments.devices is None):
        raise InputError("--topology or --devices: must be given, and only one of them")
    if arguments.topology is None and arguments.num_slices is not None:
        raise InputError("--num-slices: must be given with --topology; simulated slices are mesh.dcn_data")
    from mlm_jax.pods.topology import simulated_devices, topology_devices
    from mlm_jax.step.chips import CHIPS, chip_of

    if arguments.topology is not None:
        if arguments.chip is not None:
            raise InputError("--chip: must be given with --devices only; a topology has its own")
        slices = dcn_data if arguments.num_slices is None else arguments.num_slices
        return topology_devices(arguments.topology, slices)
    if arguments.chip is not None and chip_of(arguments.chip) is None:
        raise InputError(f"--chip {arguments.chip!r}: must be one of {', '.join(CHIPS)}")
    return simulated_devices(arguments.devices or 0)


def report_misfit(arguments: Arguments, checked: Any, fix: Any) -> int:
    """Prints the reason and the smallest change found that makes the step fit. Returns the exit code."""
    from mlm_jax.pods.compile_check import DoesNotFit

    if isinstance(checked, DoesNotFit):
        if arguments.json:
            print(json_text({"fits": False, "reason": checked.reason, "fix": fix and fix.flags}))
        reason = checked.reason
    else:
        reason = (
            f"peak {checked.peak_bytes / 2**30:.2f} GiB of {checked.memory_bytes / 2**30:.2f} GiB per chip"
        )
    remedy = (
        f"smallest change found that fits: {fix.flags} (compiled: peak {fix.report.peak_bytes / 2**30:.2f} GiB)"
        if fix
        else "no rematerialization, fsdp or accumulation that was tried fits: use more chips, or a smaller model"
    )
    print(f"does not fit: {reason}\n{remedy}", file=sys.stderr)
    return EXIT_RUN_FAILED
