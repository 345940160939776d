"""Flags from a dataclass: one per field, typed by its annotation, with the first line of its docstring as help.

A field may be a str, int, float, bool or Path, a Literal, an optional one of these, a tuple of them, or a dataclass,
whose fields become flags with a dot: `--data.sequence-length`. This module imports no other packages, so that help is
printed immediately.
"""

import argparse
import dataclasses
import inspect
import re
import shutil
import textwrap
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

from mlm_jax.config.settings import expected, field_docs, is_float32, nearest_setting
from mlm_jax.errors import InputError

ArgumentsT = typing.TypeVar("ArgumentsT")

HELP_FLAGS = ("-h", "--help")
_NEGATIVE_EXPONENTIAL = re.compile(r"-(\d+\.?\d*|\.\d+)[eE][+-]?\d+")
_BOOLEANS = {"true": True, "false": False}


def positional(metavar: str) -> Any:
    """Declares a positional argument; a tuple takes one value or more."""
    return dataclasses.field(metadata={"positional": True, "metavar": metavar})


def required(metavar: str) -> Any:
    """Declares a required flag; `metavar` represents its value in the help."""
    return dataclasses.field(metadata={"metavar": metavar})


def repeated() -> Any:
    """Declares a flag that may be given several times, with one value each; the field is a tuple."""
    return dataclasses.field(default=(), metadata={"repeated": True})


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag or a positional argument."""

    field: str
    """Dotted name of the field: `data.sequence_length`."""
    kind: Any
    """Annotation of the field."""
    default: Any
    """Default value; `dataclasses.MISSING` if the flag is required."""
    help: str
    """Help text, one line."""
    metadata: typing.Mapping[str, Any]

    @property
    def name(self) -> str:
        """Flag as typed, `--data.sequence-length`, or the metavar of a positional argument."""
        if "positional" in self.metadata:
            return str(self.metadata["metavar"])
        return f"--{self.field.replace('_', '-')}"

    @property
    def negation(self) -> str:
        """Flag that turns a switch off: `--data.no-attend-within-documents`."""
        group, dot, field = self.field.replace("_", "-").rpartition(".")
        return f"--{group}{dot}no-{field}"

    @property
    def is_tuple(self) -> bool:
        """True if the flag takes any number of values."""
        return typing.get_origin(self.kind) is tuple

    @property
    def is_switch(self) -> bool:
        """True if the flag takes no value, and has a negation."""
        return self.kind in (bool, bool | None)

    @property
    def required(self) -> bool:
        """True if the flag must be given."""
        return self.default is dataclasses.MISSING


def parse(arguments_class: type[ArgumentsT], arguments: Sequence[str], prog: str) -> ArgumentsT:
    """Builds a dataclass from a command line. `--help` prints its fields and exits.

    Raises:
        InputError: a flag is unknown (the message has the nearest name), missing, or has a value of the wrong type.
    """
    return build(arguments_class, parse_given(arguments_class, arguments, prog))


def parse_given(arguments_class: type, arguments: Sequence[str], prog: str) -> dict[str, Any]:
    """Returns only the values given on a command line, by field; otherwise like `parse`."""
    flags = flags_of(arguments_class)
    if set(HELP_FLAGS) & set(arguments):
        about = inspect.cleandoc(arguments_class.__doc__ or "")
        print(f"{wrapped(f'usage: {prog} {usage_of(flags)}')}\n\n{wrapped(about)}\n\n{rows_of(flags)}")
        raise SystemExit(0)
    return read(flags, arguments, prog)


def flags_of(arguments_class: type, default: Any = None, prefix: str = "") -> list[Flag]:
    """Returns the flags of a dataclass, in the order of its fields, with the values of `default` as defaults."""
    kinds, docs = typing.get_type_hints(arguments_class), field_docs(arguments_class)
    flags: list[Flag] = []
    for field in dataclasses.fields(arguments_class):
        name, kind = prefix + field.name, kinds[field.name]
        value = field.default if default is None else getattr(default, field.name)
        if dataclasses.is_dataclass(kind):
            flags += flags_of(typing.cast(type, kind), value, f"{name}.")
        else:
            line = docs[field.name].partition("\n")[0]
            flags.append(Flag(name, kind, value, line, field.metadata))
    return flags


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message.removeprefix('argument ')}; {self.prog} --help lists the flags")


def read(flags: Sequence[Flag], arguments: Sequence[str], prog: str) -> dict[str, Any]:
    """Returns the values given on the command line, by field. Raises InputError as `parse` does."""
    parser = _Parser(prog=prog, add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for flag in flags:
        if flag.is_switch:
            parser.add_argument(flag.name, dest=flag.field, action="store_const", const=True)
            parser.add_argument(flag.negation, dest=flag.field, action="store_const", const=False)
        elif "positional" in flag.metadata:
            parser.add_argument(flag.field, metavar=flag.name, nargs="+" if flag.is_tuple else None)
        elif "repeated" in flag.metadata:
            parser.add_argument(flag.name, dest=flag.field, action="append")
        elif flag.is_tuple:
            count = "+" if flag.required else "*"
            parser.add_argument(
                flag.name, dest=flag.field, action="extend", nargs=count, required=flag.required
            )
        else:
            parser.add_argument(flag.name, dest=flag.field, required=flag.required)
    given = vars(parser.parse_args(_normalized(flags, arguments)))
    by_field = {flag.field: flag for flag in flags}
    return {field: _converted(by_field[field], value) for field, value in given.items()}


def build(arguments_class: type[ArgumentsT], given: dict[str, Any], default: Any = None) -> ArgumentsT:
    """Builds a dataclass from values by field; the other values are those of the instance `default`."""
    values = {}
    for field in dataclasses.fields(typing.cast(Any, arguments_class)):
        inner = {name.partition(".")[2]: given[name] for name in given if name.startswith(f"{field.name}.")}
        if inner:
            group = field.default if default is None else getattr(default, field.name)
            values[field.name] = build(type(group), inner, group)
        elif field.name in given:
            values[field.name] = given[field.name]
    return arguments_class(**values) if default is None else dataclasses.replace(default, **values)


def usage_of(flags: Sequence[Flag]) -> str:
    """Returns the usage, such as `MODEL TEXT… --data DIR [--flag value …]`."""
    return " ".join([_shown(flag) for flag in flags if flag.required] + ["[--flag value …]"])


def rows_of(flags: Sequence[Flag]) -> str:
    """Returns one row per flag, as wide as the terminal: name, default or metavar, and help."""
    left = [f"  {_shown(flag)}" for flag in flags]
    indent = min(max(map(len, left)) + 2, 44)
    rows = []
    for shown, flag in zip(left, flags, strict=True):
        width = max(shutil.get_terminal_size().columns, indent + 24)
        lines = textwrap.wrap(flag.help, width - indent)
        # A flag that is too long for its column gets its own line.
        begin = [shown] if len(shown) > indent - 2 else [shown.ljust(indent) + lines.pop(0)]
        rows += begin + [" " * indent + line for line in lines]
    return "\n".join(rows)


def wrapped(text: str) -> str:
    """Wraps each paragraph to the width of the terminal."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(
        textwrap.fill(paragraph, shutil.get_terminal_size().columns) for paragraph in paragraphs
    )


def _shown(flag: Flag) -> str:
    more = "…" if flag.is_tuple and "repeated" not in flag.metadata else ""
    if "positional" in flag.metadata:
        return flag.name + more
    if flag.default is False or (flag.is_switch and flag.default is None):
        return flag.name
    if flag.default not in (dataclasses.MISSING, None, (), ""):
        value = " ".join(map(str, flag.default)) if flag.is_tuple else str(flag.default)
        return f"{flag.name} {value if len(value) < 18 else '…' + value[-16:]}"
    kinds = [kind for kind in typing.get_args(flag.kind) if kind not in (type(None), ...)]
    kind = kinds[0] if kinds and typing.get_origin(flag.kind) is not Literal else flag.kind
    return f"{flag.name} {flag.metadata.get('metavar') or _METAVARS.get(kind, 'NAME')}{more}"


_METAVARS = {int: "INT", float: "NUMBER", str: "TEXT", Path: "PATH"}


def _normalized(flags: Sequence[Flag], arguments: Sequence[str]) -> list[str]:
    """Normalizes the spelling of flags: dashes for underscores, and the negation for a switch that is False.

    Raises InputError for an unknown flag, with the nearest name.
    """
    switches = {flag.name: flag.negation for flag in flags if flag.is_switch}
    names = [*HELP_FLAGS, *(flag.name for flag in flags), *switches.values()]
    normalized: list[str] = []
    for place, argument in enumerate(arguments):
        if argument == "--":
            return [*normalized, *arguments[place:]]
        # argparse takes it for a flag.
        if _NEGATIVE_EXPONENTIAL.fullmatch(argument) and normalized and normalized[-1] in names:
            normalized[-1] += f"={argument}"
            continue
        if normalized and normalized[-1] in switches and argument.lower() in _BOOLEANS:
            name, equals, value = normalized.pop(), "=", argument
        else:
            name, equals, value = argument.partition("=")
        if not re.fullmatch(r"--[\w.-]+", name):
            normalized.append(argument)
            continue
        name = name.replace("_", "-")
        if name not in names:
            raise InputError(f"{name}: no such flag{nearest_setting(name, names)}")
        if name in switches and equals:
            if value.lower() not in _BOOLEANS:
                raise InputError(f"{name} {value!r}: must be True or False")
            name, equals, value = name if _BOOLEANS[value.lower()] else switches[name], "", ""
        normalized.append(f"{name}{equals}{value}")
    return normalized


def _converted(flag: Flag, value: Any) -> Any:
    if isinstance(value, list):
        kind = typing.get_args(flag.kind)[0]
        return tuple(_convert(flag, kind, text) for text in value)
    return value if flag.is_switch else _convert(flag, flag.kind, value)


def _convert(flag: Flag, kind: Any, text: str) -> Any:
    is_union = typing.get_origin(kind) in (types.UnionType, typing.Union)
    options = typing.get_args(kind) if is_union else (kind,)
    if type(None) in options and text.lower() == "none":
        return None
    for option in options:
        if option is type(None):
            continue
        if not text and (option is Path or flag.required):
            raise InputError(f"{flag.name}: must not be empty")
        if typing.get_origin(option) is Literal:
            if text in typing.get_args(option):
                return text
        else:
            # Python's literals have 1_000 for 1000; 1_0 is probably meant to be 1.0.
            if option in (int, float) and "_" in text:
                continue
            try:
                value = option(text)
            except ValueError:
                continue
            if option is float and not is_float32(value):
                raise InputError(f"{flag.name} {text!r}: must be {expected(kind, value)}")
            return value
    raise InputError(f"{flag.name} {text!r}: must be {expected(kind, text)}")
