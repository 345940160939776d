"""A run's config from a file and the command line: `CONFIG.py --optimizer.learning-rate 1e-3`."""

import runpy
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from mlm_jax import cli
from mlm_jax.config import TrainConfig, flatten, from_json, nearest_name
from mlm_jax.errors import InputError


def load_config(path: str | Path) -> TrainConfig:
    """The config of a `.py` file, from its `config() -> TrainConfig`, or of a run's `config.json`.

    A Python config may import its neighbours by name, to derive from them.

    Raises:
        InputError: no such file, an error inside it (with its line), or no `config()` that gives a TrainConfig.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such config file")
    if path.suffix == ".json":
        return from_json(TrainConfig, path.read_text())
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        make = runpy.run_path(str(path)).get("config")
        if not callable(make):
            raise InputError(f"{path}: must define config() -> TrainConfig")
        config = make()
    except InputError as error:
        raise InputError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from error
    except Exception as error:
        lines = [
            frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
        ]
        line = getattr(error, "lineno", None) or (lines[-1] if lines else "?")
        raise InputError(f"{path}:{line}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    if not isinstance(config, TrainConfig):
        raise InputError(f"{path}: config() gave {type(config).__name__}: must give a TrainConfig")
    return config


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
    flags = ["--help", *(f"--{name.replace('_', '-')}" for name in flatten(asdict(config)))]
    flags += [
        f"{flag[: flag.rfind('.') + 1] or '--'}no-{flag[flag.rfind('.') + 1 :].removeprefix('--')}"
        for flag in flags
    ]
    for argument in arguments:
        flag = argument.split("=")[0].replace("_", "-")
        if flag.startswith("--") and flag not in flags:
            raise InputError(f"{flag}: no such setting{nearest_name(flag, flags)}")
