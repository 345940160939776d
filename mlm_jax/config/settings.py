"""What every settings class has: fields that are checked, JSON that is strict, names that are guessed. No jax.

A settings class is a frozen dataclass whose `__post_init__` calls `check_types` and then what else it requires.
"""

import dataclasses
import difflib
import json
import types
import typing
from typing import Any, Literal

from mlm_jax.errors import InputError

ConfigT = typing.TypeVar("ConfigT")


def require(config: object, name: str, holds: bool, allowed: str) -> None:
    """InputError naming the field `name`, its value and what is `allowed`, unless the condition `holds`."""
    if not holds:
        value = getattr(config, name)
        raise InputError(f"{type(config).__name__}.{name} = {value!r}: must be {allowed}")


def check_types(config: object) -> None:
    """InputError where a field does not hold what its annotation says; Python itself would not notice."""
    for name, kind in typing.get_type_hints(type(config)).items():
        if not _is_of(kind, getattr(config, name)):
            require(config, name, False, _wanted(kind, getattr(config, name)))


def _is_of(kind: Any, value: Any) -> bool:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return any(_is_of(argument, value) for argument in arguments)
    if origin is Literal:
        return value in arguments
    if origin is tuple:
        return isinstance(value, tuple) and all(_is_of(arguments[0], item) for item in value)
    # A bool is an int to Python, and an int may stand for a float.
    return type(value) in (int, float) if kind is float else type(value) is kind


def _wanted(kind: Any, value: Any) -> str:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_wanted(argument, value) for argument in arguments)
    if origin is Literal:
        near = nearest_name(value, arguments) if isinstance(value, str) else ""
        return f"one of {', '.join(map(repr, arguments))}{near}"
    if origin is tuple:
        return f"a tuple, each {_wanted(arguments[0], value)}"
    names = {int: "a whole number", float: "a number", str: "a string", bool: "True or False"}
    return names.get(kind, "None" if kind is type(None) else f"a {getattr(kind, '__name__', kind)}")


def require_positive(config: object, *names: str) -> None:
    """InputError where one of the fields is below 1."""
    for name in names:
        require(config, name, getattr(config, name) >= 1, "at least 1")


def require_rate(config: object, *names: str) -> None:
    """InputError where one of the fields is outside [0, 1]."""
    for name in names:
        require(config, name, 0.0 <= getattr(config, name) <= 1.0, "in [0, 1]")


def require_below_one(config: object, *names: str) -> None:
    """InputError where one of the fields is outside [0, 1)."""
    for name in names:
        require(config, name, 0.0 <= getattr(config, name) < 1.0, "in [0, 1)")


def to_json(config: Any) -> str:
    """The config as indented JSON."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(config_class: type[ConfigT], text: str) -> ConfigT:
    """The config that `to_json` wrote. InputError for JSON that does not parse and unknown or ill-typed fields."""
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{config_class.__name__}: not JSON: {error}") from error
    built: ConfigT = _build(config_class, tree, "")
    return built


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dict with its keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(
            flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
        )
    return flat


def changed_settings(config: Any, other: Any) -> dict[str, tuple[Any, Any]]:
    """Dotted name to both values, of every setting that two configs of a class do not have alike."""
    first, second = (flatten(dataclasses.asdict(each)) for each in (config, other))
    return {name: (first[name], second[name]) for name in first if first[name] != second[name]}


def nearest_name(name: str, names: typing.Iterable[str]) -> str:
    """`"; did you mean 'x'?"` for the closest of `names`, or nothing where none is close."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _build(kind: Any, value: Any, where: str) -> Any:
    """`value`, parsed from JSON, as an instance of the annotation `kind`; the classes check the values."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise InputError(f"{where.rstrip('.') or 'config'}: must be an object, not {value!r}")
        kinds = typing.get_type_hints(kind)
        for name in value:
            if name not in kinds:
                raise InputError(f"{where}{name}: no such setting{nearest_name(name, kinds)}")
        return kind(**{name: _build(kinds[name], item, f"{where}{name}.") for name, item in value.items()})
    # JSON has neither tuples nor, for a whole number, floats.
    if isinstance(value, list):
        return tuple(value)
    return float(value) if kind is float and type(value) is int else value
