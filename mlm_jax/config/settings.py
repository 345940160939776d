"""Helpers for settings classes: type checks, range checks, strict JSON and name suggestions. Nothing here imports jax.

A settings class is a frozen dataclass whose `__post_init__` calls `check_types` and then checks its own constraints.
"""

import ast
import dataclasses
import difflib
import functools
import inspect
import json
import math
import textwrap
import types
import typing
from pathlib import Path
from typing import Any, Literal

from mlm_jax.errors import InputError
from mlm_jax.files.json_files import parse_json

ConfigT = typing.TypeVar("ConfigT")

LARGEST_FLOAT32 = 2.0**127 * (2 - 2.0**-23)
# Settings become float32 on the device, where smaller numbers are 0 and larger ones are infinite.
_SMALLEST = 2.0**-126


def require(config: object, name: str, holds: bool, allowed: str) -> None:
    """Raises InputError with the field `name`, its value and the `allowed` values, unless `holds` is true."""
    if not holds:
        value = getattr(config, name)
        raise InputError(f"{type(config).__name__}.{name} = {value!r}: must be {allowed}")


def check_types(config: object) -> None:
    """Raises InputError if the value of a field does not match its annotation, which Python does not check.

    NumPy's scalars, such as the result of a sum or the items of an array, become numbers of Python.
    """
    for name, kind in typing.get_type_hints(type(config)).items():
        value = getattr(config, name)
        if hasattr(value, "item") and getattr(value, "shape", None) == ():
            value = value.item()
            object.__setattr__(config, name, value)
        if isinstance(value, tuple):
            value = tuple(item.item() if getattr(item, "shape", None) == () else item for item in value)
            object.__setattr__(config, name, value)
        if not _matches(kind, value):
            require(config, name, False, expected(kind, value))


def _matches(kind: Any, value: Any) -> bool:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return any(_matches(argument, value) for argument in arguments)
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        return isinstance(value, tuple) and all(_matches(arguments[0], item) for item in value)
    if kind is float:
        return is_float32(value)
    # Not isinstance, because a bool is also an int in Python.
    return type(value) is kind


def is_float32(value: object) -> bool:
    """Returns True for an int or float that is finite in float32 and, unless it is 0, does not become 0.

    Settings become float32 on the device. No setting may be NaN or infinite; where a limit can be absent, it is None.
    """
    # Not isinstance, because a bool is also an int in Python.
    if type(value) not in (int, float):
        return False
    return value == 0 or _SMALLEST <= abs(value) <= LARGEST_FLOAT32  # type: ignore[arg-type]


def expected(kind: Any, value: Any) -> str:
    """Describes the values that the annotation `kind` allows, and suggests the choice nearest to `value`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(expected(argument, value) for argument in arguments)
    if origin is Literal:
        near = nearest_name(value, arguments) if isinstance(value, str) else ""
        return f"one of {', '.join(map(repr, arguments))}{near}"
    if origin is tuple:
        return f"a tuple, each {expected(arguments[0], value)}"
    if kind is float and type(value) in (int, float):
        # A NaN is not equal to itself.
        is_number = value == value and abs(value) != math.inf  # noqa: PLR0124
        return f"0, or {_SMALLEST:.1e} to {LARGEST_FLOAT32:.1e} in size" if is_number else "a finite number"
    names = {int: "a whole number", float: "a number", str: "a string", bool: "True or False", Path: "a path"}
    return names.get(kind, "None" if kind is type(None) else f"a {getattr(kind, '__name__', kind)}")


@functools.cache
def field_docs(config_class: type) -> dict[str, str]:
    """Maps each field of a dataclass to the docstring below it; inherited fields come from their own class.

    The first line must be self-contained, because `--help` prints only this line.
    """
    docs: dict[str, str] = {}
    for owner in reversed(config_class.__mro__[:-1]):
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
        assert isinstance(definition, ast.ClassDef)
        for field, below in zip(definition.body, definition.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                match below:
                    case ast.Expr(ast.Constant(str(text))):
                        docs[field.target.id] = inspect.cleandoc(text)
    return docs


def require_positive(config: object, *names: str) -> None:
    """Raises InputError if one of the fields is below 1."""
    for name in names:
        require(config, name, getattr(config, name) >= 1, "at least 1")


def require_above_zero(config: object, *names: str) -> None:
    """Raises InputError if one of the fields is 0 or negative."""
    for name in names:
        require(config, name, getattr(config, name) > 0, "above 0")


def require_rate(config: object, *names: str) -> None:
    """Raises InputError if one of the fields is outside [0, 1]."""
    for name in names:
        require(config, name, 0.0 <= getattr(config, name) <= 1.0, "in [0, 1]")


def require_below_one(config: object, *names: str) -> None:
    """Raises InputError if one of the fields is outside [0, 1), or so close to 1 that float32 rounds it to 1."""
    for name in names:
        allowed = "in [0, 1)" if getattr(config, name) >= 1 else "in [0, 1), in float32, too"
        require(config, name, 0.0 <= getattr(config, name) < 1 - 2**-25, allowed)


def to_json(config: Any) -> str:
    """Returns the config as indented JSON."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(config_class: type[ConfigT], text: str | bytes) -> ConfigT:
    """Parses the output of `to_json`. Raises InputError for invalid JSON and for unknown or ill-typed fields."""
    built: ConfigT = _build(config_class, parse_json(text, config_class.__name__), "")
    return built


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens a nested dict, joining keys with dots."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(
            flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        )
    return flat


def changed_settings(config: Any, other: Any) -> dict[str, tuple[Any, Any]]:
    """Maps the dotted name of every setting that differs to its two values. Both configs must have the same class."""
    first, second = (flatten(dataclasses.asdict(each)) for each in (config, other))
    return {name: (first[name], second[name]) for name in first if first[name] != second[name]}


def nearest_name(name: str, names: typing.Iterable[str]) -> str:
    """Returns `"; did you mean 'x'?"` for the closest of `names`, or an empty string if none is close."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


# Names of settings in other libraries that resemble the wrong setting or none.
_OTHER_NAMES = {
    **dict.fromkeys(("max_seq_length", "max_length", "seq_len", "seq_length"), "sequence_length"),
    **dict.fromkeys(("mlm_probability", "masked_lm_prob", "mask_rate"), "mask_selection_rate"),
    **dict.fromkeys(("epochs", "num_epochs", "num_train_epochs", "max_steps"), "num_steps"),
    **dict.fromkeys(("data", "train_file", "input_file"), "path"),
}


def nearest_setting(name: str, names: typing.Iterable[str]) -> str:
    """Like `nearest_name` for settings and flags, of which the last part or initials may be given.

    `learning_rate` and `lr` both suggest `optimizer.learning_rate`, and `max_seq_length`, the name in other libraries,
    `data.sequence_length`.
    """
    names, given = list(names), _last_part(name)
    # Of settings with the same last part, the first is suggested.
    by_part = {_last_part(each): each for each in reversed(names)}
    by_initials = {"".join(word[:1] for word in part.split("_")): each for part, each in by_part.items()}
    by_other_name = {other: by_part[part] for other, part in _OTHER_NAMES.items() if part in by_part}
    for table in (by_other_name, by_part, by_initials):
        if given in table and len(given) > 1:
            return f"; did you mean {table[given]!r}?"
    close = difflib.get_close_matches(given, by_part, n=1)
    return nearest_name(name, names) or (f"; did you mean {by_part[close[0]]!r}?" if close else "")


def _last_part(name: str) -> str:
    return name.strip("-").replace("-", "_").rpartition(".")[2]


def _build(kind: Any, value: Any, where: str) -> Any:
    """Converts parsed JSON to the annotated type `kind`; the settings classes check the values."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise InputError(f"{where.rstrip('.') or 'config'}: must be an object, not {value!r}")
        kinds = typing.get_type_hints(kind)
        for name in value:
            if name not in kinds:
                raise InputError(f"{where}{name}: no such setting{nearest_setting(name, kinds)}")
        return kind(**{name: _build(kinds[name], item, f"{where}{name}.") for name, item in value.items()})
    # JSON has no tuples, and a float without a fraction may be written as an int.
    if isinstance(value, list):
        return tuple(value)
    return float(value) if kind is float and type(value) is int and is_float32(value) else value
