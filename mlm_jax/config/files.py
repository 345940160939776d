"""Loads configs from Python files with a `config()`, JSON, run folders, and the shipped configs."""

import contextlib
import importlib
import inspect
import re
import runpy
import sys
import traceback
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import mlm_jax.config
from mlm_jax.config import TrainConfig
from mlm_jax.config.settings import from_json, nearest_name, nearest_setting
from mlm_jax.errors import InputError

# First keys of config.json in model folders: our own, Hugging Face's and KerasHub's.
_KEYS_OF_MODELS = (
    *("format", "architectures", "model_type", "module"),
    *("_name_or_path", "attention_probs_dropout_prob"),
)


def load_config(source: str | Path) -> TrainConfig:
    """Loads a config.

    Args:
        source: a Python file with `config() -> TrainConfig`, a config in JSON, a run folder or the `config.json` in it
            (the config then has that folder as `output_dir`, even if the folder was moved), or the name of a shipped
            config such as `demo`. A Python config may import its neighbors by name, and shipped configs as
            `mlm_jax.configs.NAME`, to derive from them.

    Raises:
        InputError: there is no such file, an error occurred inside it (the message has its line), or it has no
            `config()` that returns a TrainConfig.
    """
    # Path("") is the current folder.
    if not str(source):
        raise InputError("'': must be the name of a config, a config file or a run folder")
    path = Path(source)
    if (path / "config.json").is_file():
        return replace(read_json_config(path / "config.json"), output_dir=str(path))
    if path.suffix == ".json" and path.is_file():
        config = read_json_config(path)
        is_of_run = path.name == "config.json" and (path.parent / "tokenizer").is_dir()
        return replace(config, output_dir=str(path.parent)) if is_of_run else config
    if path.is_dir() and str(path) not in shipped_configs():
        run = path.parent.parent
        way = (
            f"; `{run} --from-step {path.name}` resumes that run" if path.parent.name == "checkpoints" else ""
        )
        raise InputError(f"{path}: no config.json in it: must be a run folder or a config file{way}")
    config, _ = call_in_file(path, "config", "TrainConfig")
    if not isinstance(config, TrainConfig):
        raise InputError(f"{path}: config() returned {type(config).__name__}: must return a TrainConfig")
    return config


def call_in_file(path: Path, function: str, returns: str) -> tuple[Any, str]:
    """Calls `function()` of a Python file or of a shipped config; returns its result and the file's docstring.

    The file may import its neighbors by name. They are loaded anew each time and not kept, because the neighbor of
    another config may have the same name.

    Raises:
        InputError: there is no such file, no such function in it, or an error occurred inside it (the message has its
            line).
    """
    path = _find(path)
    with _importable_neighbors(path.parent.resolve()):
        try:
            names = runpy.run_path(str(path))
            make = names.get(function)
            if not callable(make):
                raise InputError(f"{path}: must define {function}() -> {returns}")
            return make(), inspect.cleandoc(names["__doc__"] or "")
        except InputError as error:
            if str(path) in str(error):
                raise
            raise InputError(f"{_place(path, error)}: {error}") from error
        except SystemExit as error:
            ends = f"{_place(path, error)}: ends the process (SystemExit: {error.code})"
            raise InputError(f"{ends}: must define {function}() -> {returns}") from error
        except Exception as error:
            raise InputError(f"{_place(path, error)}: {_describe(error)}") from error


def shipped_configs() -> dict[str, Path]:
    """Maps the names of the configs that come with the package to their files: `demo`, `ablations/norm`, …"""
    # Imported late, because configs import the settings.
    from mlm_jax import configs

    folder = Path(next(iter(configs.__path__)))
    files = sorted(file for file in folder.rglob("*.py") if file.name != "__init__.py")
    return {file.relative_to(folder).with_suffix("").as_posix(): file for file in files}


def _find(path: Path) -> Path:
    if path.is_file():
        return path
    shipped = shipped_configs()
    if str(path) in shipped:
        return shipped[str(path)]
    neighbors = [str(path.with_name(file.name)) for file in path.parent.glob("*.py")]
    raise InputError(f"{path}: no such config file{nearest_name(str(path), [*neighbors, *shipped])}")


@contextlib.contextmanager
def _importable_neighbors(folder: Path) -> Iterator[None]:
    """Makes `import NAME` load NAME.py of this folder within the context, and leaves no trace of it afterwards."""
    names = {file.stem for file in folder.glob("[!_]*.py")} - sys.stdlib_module_names
    hidden = {name: sys.modules.pop(name) for name in names & set(sys.modules)}
    sys.path.insert(0, str(folder))
    # Python caches folder listings, and the files may be newer.
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(hidden)


def _place(path: Path, error: BaseException) -> str:
    """Returns `file:line` of an error in a Python config or in a neighbor that it imports."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}" if error.filename else str(path)
    folder = path.parent.resolve()
    frames = traceback.extract_tb(error.__traceback__)
    files = [(Path(frame.filename), frame.lineno) for frame in frames]
    # Methods generated by dataclasses have the file name "<string>".
    own = [(file, line) for file, line in files if file.resolve().parent == folder and file.is_file()]
    return ":".join(map(str, own[-1])) if own else str(path)


def _describe(error: Exception) -> str:
    """Describes an error; for a misspelled setting of a config class, names the setting and the nearest one."""
    misspelled = re.fullmatch(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'.*", str(error))
    config_class = getattr(mlm_jax.config, misspelled[1], None) if misspelled else None
    if misspelled is None or config_class is None or not is_dataclass(config_class):
        return f"{type(error).__name__}: {error}"
    nearest = nearest_setting(misspelled[2], [field.name for field in fields(config_class)])
    return f"{misspelled[1]}.{misspelled[2]}: no such setting{nearest}"


def read_json_config(path: Path) -> TrainConfig:
    """Reads a config file written with `to_json`. Raises InputError, which names the file, if it is invalid."""
    try:
        return from_json(TrainConfig, path.read_bytes())
    except InputError as error:
        if re.match(f"({'|'.join(_KEYS_OF_MODELS)}): no such setting", str(error)):
            raise InputError(
                f"{path}: of a model, not of a run: --init-from {path.parent} starts a run from that model"
            ) from error
        raise InputError(f"{path}: {error}") from error
