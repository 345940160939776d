"""A run's config from a file and the command line: `CONFIG.py --optimizer.learning-rate 1e-3`."""

import inspect
import re
import runpy
import sys
import traceback
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import mlm_jax.config
from mlm_jax.config import TrainConfig
from mlm_jax.config.settings import from_json, nearest_name
from mlm_jax.errors import InputError


def load_config(path: str | Path) -> TrainConfig:
    """The config of a `.py` file, from its `config() -> TrainConfig`, or of a run's `config.json`.

    A Python config may import its neighbours by name, to derive from them.

    Raises:
        InputError: no such file, an error inside it (with its line), or no `config()` that gives a TrainConfig.
    """
    path = Path(path)
    if path.suffix == ".json" and path.is_file():
        return read_json_config(path)
    config, _ = call_in_file(path, "config", "TrainConfig")
    if not isinstance(config, TrainConfig):
        raise InputError(f"{path}: config() gave {type(config).__name__}: must give a TrainConfig")
    return config


def call_in_file(path: Path, function: str, gives: str) -> tuple[Any, str]:
    """What `function()` of a Python file gives, and the file's docstring. It may import its neighbours by name.

    Raises:
        InputError: no such file, no such function in it, or an error inside it, with its line.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such config file")
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        names = runpy.run_path(str(path))
        make = names.get(function)
        if not callable(make):
            raise InputError(f"{path}: must define {function}() -> {gives}")
        return make(), inspect.cleandoc(names["__doc__"] or "")
    except InputError as error:
        if str(path) in str(error):
            raise
        raise InputError(f"{_place(path, error)}: {error}") from error
    except Exception as error:
        raise InputError(f"{_place(path, error)}: {_what(error)}") from error
    finally:
        sys.path.pop(0)


def _place(path: Path, error: Exception) -> str:
    """`file:line` of an error in a Python config, or in the neighbour of it that was to blame."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}"
    folder = path.parent.resolve()
    frames = traceback.extract_tb(error.__traceback__)
    files = [(Path(frame.filename), frame.lineno) for frame in frames]
    # What a dataclass writes for itself has a name that is no file's.
    own = [(file, line) for file, line in files if file.resolve().parent == folder and file.is_file()]
    return ":".join(map(str, own[-1])) if own else str(path)


def _what(error: Exception) -> str:
    """The error, or where it is a misspelt setting of a config class, the setting and the nearest."""
    misspelt = re.fullmatch(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'.*", str(error))
    config_class = getattr(mlm_jax.config, misspelt[1], None) if misspelt else None
    if misspelt is None or config_class is None or not is_dataclass(config_class):
        return f"{type(error).__name__}: {error}"
    nearest = nearest_name(misspelt[2], [field.name for field in fields(config_class)])
    return f"{misspelt[1]}.{misspelt[2]}: no such setting{nearest}"


def read_json_config(path: Path) -> TrainConfig:
    """The config that `to_json` wrote to a file. InputError, naming the file, where it does not parse."""
    try:
        return from_json(TrainConfig, path.read_bytes().decode())
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: broken UTF-8 at byte {error.start}; must be JSON") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
