"""Compile a config's train step for chips that are not there: compile_check.py CONFIG --topology v5e:16x16."""

import json
import sys
from dataclasses import dataclass, replace
from typing import Annotated, Any

import tyro

from mlm_jax.commands import cli
from mlm_jax.commands.config_flags import parse_config
from mlm_jax.errors import EXIT_RUN_FAILED, InputError


@dataclass(frozen=True)
class Arguments:
    """compile_check.py CONFIG.py [flags] [--setting value …]: compile the train step for chips that are
    not there and say what it takes of one; exits with 1 where it does not fit. All other
    flags are settings of the config, as train.py takes them."""

    topology: str | None = None
    """TPU slice to compile for, as v5e:16x16 or v5p:4x4x4; needs the extra `pod`."""
    num_slices: int | None = None
    """How many such slices; by default mesh.dcn_data."""
    devices: int | None = None
    """Instead of a topology: so many simulated CPU devices."""
    chip: str | None = None
    """With --devices: the chip that a simulated device stands for, as "NVIDIA H100"."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one JSON object."""
    row: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print one row of a Markdown table."""


def main() -> int:
    """Read the arguments, compile, print; 1 where the step does not fit."""
    parsed: Any = cli.parse(Arguments, return_unknown_args=True)
    arguments, others = parsed
    config = parse_config(others, prog="compile_check.py")
    devices = _devices(arguments, config.mesh.dcn_data)
    # Late, so that a mistyped setting is told before jax starts.
    from mlm_jax.pods.compile_check import DoesNotFit, compile_step, smallest_fix
    from mlm_jax.pods.report import ROW_HEADER, describe, row
    from mlm_jax.step.chips import chip_of

    checked = compile_step(replace(config, compilation_cache_dir=None), devices, arguments.chip)
    if not isinstance(checked, DoesNotFit):
        if arguments.json:
            print(json.dumps(checked.as_json()))
        else:
            print(f"{ROW_HEADER}\n{row(checked)}" if arguments.row else describe(checked))
        if checked.fits:
            return 0
    chip = chip_of(arguments.chip or devices[0].device_kind)
    fix = smallest_fix(config, devices, arguments.chip, chip.memory_bytes if chip else None)
    return _does_not_fit(arguments, checked, fix)


def _devices(arguments: Arguments, dcn_data: int) -> list[Any]:
    if (arguments.topology is None) == (arguments.devices is None):
        raise InputError("--topology or --devices: must be given, and only one of them")
    if arguments.topology is None and arguments.num_slices is not None:
        raise InputError("--num-slices: must be given with --topology; simulated slices are mesh.dcn_data")
    from mlm_jax.pods.topology import simulated_devices, topology_devices
    from mlm_jax.step.chips import CHIPS, chip_of

    if arguments.topology is not None:
        if arguments.chip is not None:
            raise InputError("--chip: must be given with --devices alone; a topology has its own")
        slices = dcn_data if arguments.num_slices is None else arguments.num_slices
        return topology_devices(arguments.topology, slices)
    if arguments.chip is not None and chip_of(arguments.chip) is None:
        raise InputError(f"--chip {arguments.chip!r}: must be one of {', '.join(CHIPS)}")
    return simulated_devices(arguments.devices or 0)


def _does_not_fit(arguments: Arguments, checked: Any, fix: Any) -> int:
    from mlm_jax.pods.compile_check import DoesNotFit

    if isinstance(checked, DoesNotFit):
        if arguments.json:
            print(json.dumps({"fits": False, "reason": checked.reason, "fix": fix and fix.flags}))
        said = checked.reason
    else:
        said = f"peak {checked.peak_bytes / 2**30:.2f} GiB of {checked.memory_bytes / 2**30:.2f} GiB a chip"
    remedy = (
        f"the smallest change found that fits: {fix.flags} (compiled: peak {fix.report.peak_bytes / 2**30:.2f} GiB)"
        if fix
        else "no rematerialisation, fsdp or accumulation that was tried fits: more chips, or a smaller model"
    )
    print(f"does not fit: {said}\n{remedy}", file=sys.stderr)
    return EXIT_RUN_FAILED


if __name__ == "__main__":
    cli.run(main)
