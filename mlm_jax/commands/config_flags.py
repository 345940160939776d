"""A run's config from the command line: `CONFIG.py --optimizer.learning-rate 1e-3`."""

import sys
from collections.abc import Sequence
from dataclasses import asdict

from mlm_jax.commands import cli
from mlm_jax.config import TrainConfig
from mlm_jax.config.files import load_config
from mlm_jax.config.settings import flatten, nearest_name
from mlm_jax.errors import InputError


def parse_config(arguments: Sequence[str], prog: str) -> TrainConfig:
    """The config that the first argument names, with the settings that follow it on the command line."""
    if not arguments or arguments[0].startswith("-"):
        usage = f"usage: {prog} CONFIG.py [--setting value …]; {prog} CONFIG.py --help lists the settings"
        if arguments and arguments[0] in ("-h", "--help"):
            print(usage)
            sys.exit(0)
        raise InputError(f"the first argument must be a config file; {usage}")
    config = load_config(arguments[0])
    _check_flags(config, arguments[1:])
    return cli.parse(TrainConfig, prog=f"{prog} {arguments[0]}", default=config, args=arguments[1:])


def _check_flags(config: TrainConfig, arguments: Sequence[str]) -> None:
    """InputError for a flag that is none, in one line, before tyro would say so in ten."""
    flags = ["--help"]
    for name, value in flatten(asdict(config)).items():
        group, dot, field = name.replace("_", "-").rpartition(".")
        flags += [f"--{group}{dot}{field}"]
        if isinstance(value, bool):
            flags += [f"--{group}{dot}no-{field}"]
    for argument in arguments:
        flag = argument.split("=")[0].replace("_", "-")
        if flag.startswith("--") and flag not in flags:
            raise InputError(f"{flag}: no such setting{nearest_name(flag, flags)}")
