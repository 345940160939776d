"""Labels as users give them → targets of a classifier. Names win over positions, and nothing is rounded.

N texts, C outputs.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from enum import Enum
from numbers import Real
from typing import Any

import numpy as np

from mlm_jax.config.settings import LARGEST_FLOAT32
from mlm_jax.errors import InputError

# Number of names or characters of a value that messages show.
_SHOWN = 12
_SHOWN_CHARACTERS = 80

Where = Callable[[int], str]
"""Maps the index of a label to its place in messages, such as "label 3"."""


def listed(values: Any, what: str) -> list[Any]:
    """Returns the items of a list, an array, a pandas Series or another ordered iterable, as Python objects.

    Raises:
        InputError: `values` is a single string, a mapping, a set or a table, or has no items.
    """
    is_table = getattr(values, "ndim", 1) != 1 and not hasattr(values, "tolist")
    if isinstance(values, str | bytes | Mapping | Set) or is_table or not hasattr(values, "__iter__"):
        raise InputError(f"{what}: found {kind_of(values)}: must be a list")
    items = values.tolist() if hasattr(values, "tolist") else list(values)
    if not isinstance(items, list) or not items:
        raise InputError(f"{what}: must be a list of at least one")
    return items


def check_switch(name: str, value: Any) -> None:
    """Raises InputError if an argument is not True or False: any string would count as True."""
    if not isinstance(value, bool):
        raise InputError(f"{name} = {value!r}: must be True or False")


def check_count(name: str, value: Any) -> None:
    """Raises InputError if an argument is not a whole number or below 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise InputError(f"{name} = {value!r}: must be a whole number, at least 1")


def kind_of(value: Any) -> str:
    """Describes a value of the wrong type in a message: its type and the value, shortened."""
    if value is None:
        return "None"
    shown = repr(value)
    shown = shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[:_SHOWN_CHARACTERS]}…"
    return f"{type(value).__name__} {shown}"


def shown(names: Sequence[str]) -> str:
    """Returns the first names in parentheses, for messages."""
    more = ", …" if len(names) > _SHOWN else ""
    return f"({', '.join(map(repr, names[:_SHOWN]))}{more})"


def number_in(text: str) -> float | None:
    """Returns the number that a text states, or None. Unlike Python's literals, 1_5 is none."""
    try:
        return None if "_" in text else float(text)
    except ValueError:
        return None


def class_names(labels: Any, *, may_repeat: bool = False) -> tuple[str, ...]:
    """Returns the names of classes given as strings, numbers or booleans: 1 is the class named "1".

    With `may_repeat`, as for the outputs of a trained model, classes may have the same name.

    Raises:
        InputError: a name is of another type, empty, or given twice.
    """
    names: dict[str, None] = {}
    for index, label in enumerate(map(_plain, listed(labels, "labels"))):
        is_name = isinstance(label, str | Real) and label != "" and str(label) != "nan"
        if not is_name:
            raise InputError(f"labels[{index}]: found {kind_of(label)}: must be a name")
        name = str(label)
        if name in names and not may_repeat:
            raise InputError(f"labels[{index}]: {name!r}: is given twice")
        names[name] = None
    return tuple(names)


def class_targets(labels: Sequence[Any], names: Sequence[str], where: Where) -> np.ndarray:
    """Returns the class of each label, int32 [N].

    A string is the name of a class. A number or boolean is the class of that name ("1" for 1, "1" or "True" for True);
    only if no name is a number or a truth value, a whole number is the position of a class. A boolean never is.

    Raises:
        InputError: a label is of another type, or there is no such class; the message has its place.
    """
    # Of two classes with the same name, neither can be meant by it.
    counts = Counter(names)
    by_name = {name: number for number, name in enumerate(names) if counts[name] == 1}
    takes_positions = not any(_is_value(name) for name in names)
    targets = np.empty(len(labels), np.int32)
    for index, given in enumerate(labels):
        label = _plain(given)
        found = by_name.get(str(label)) if isinstance(label, str | Real) else None
        if found is None and isinstance(label, Real) and label == _whole(label):
            whole = _whole(label)
            found = by_name.get(str(whole))
            # True of the names ("yes", "no") would be "no".
            is_position = takes_positions and not isinstance(label, bool)
            if found is None and is_position and 0 <= whole < len(names):
                found = whole
        if found is None:
            raise InputError(f"{where(index)}: {_problem(label, names, takes_positions)}")
        targets[index] = found
    return targets


def _problem(label: Any, names: Sequence[str], takes_positions: bool) -> str:
    if not isinstance(label, str | Real):
        return f"found {kind_of(label)}: must be the name or number of a class"
    allowed = f"one of {shown(names)}"
    if takes_positions and not isinstance(label, bool):
        allowed = f"a number below {len(names)} or {allowed}"
    is_fraction = isinstance(label, float) and math.isfinite(label) and label != int(label)
    hint = "; problem_type='regression' fits numbers" if is_fraction else ""
    return f"{label!r}: must be {allowed}{hint}"


def label_matrix(labels: Sequence[Any], names: Sequence[str], where: Where) -> np.ndarray:
    """Returns the labels of each text as float32 [N, C] in [0, 1].

    A text's labels are a list of names, or C numbers in [0, 1]; with one output, also a single number or boolean.

    Raises:
        InputError: a label is of another type, out of range, or has an unknown name; the message has its place.
    """
    allowed = f"a list of names of {shown(names)}, or {len(names)} numbers in [0, 1]"
    if len(names) == 1:
        allowed = f"a number in [0, 1], or a list of {names[0]!r} or nothing"
    by_name = {name: number for number, name in enumerate(names)}
    targets = np.zeros((len(labels), len(names)), np.float32)
    for index, given in enumerate(labels):
        label = _plain(given)
        if len(names) == 1 and isinstance(label, Real):
            label = [label]
        if not isinstance(label, list | tuple | Set):
            raise InputError(f"{where(index)}: found {kind_of(label)}: must be {allowed}")
        values = [_plain(value) for value in label]
        if all(isinstance(value, str) for value in values):
            for name in values:
                if name not in by_name:
                    raise InputError(f"{where(index)}: {name!r}: must be {allowed}")
                targets[index, by_name[name]] = 1.0
            continue
        in_range = all(isinstance(value, Real) and not value < 0 and value <= 1 for value in values)
        if isinstance(label, Set) or len(values) != len(names) or not in_range:
            hint = "; problem_type='regression' fits other numbers" if len(names) == 1 else ""
            raise InputError(f"{where(index)}: found {kind_of(_plain(given))}: must be {allowed}{hint}")
        targets[index] = values
    return targets


def value_matrix(labels: Sequence[Any], names: Sequence[str], where: Where) -> np.ndarray:
    """Returns the numbers to predict, float32 [N, C]. A text's label is C numbers or, with one output, a number.

    Raises:
        InputError: a label is not a finite number; the message has its place.
    """
    allowed = "a finite number" if len(names) == 1 else f"{len(names)} finite numbers"
    targets = np.empty((len(labels), len(names)), np.float32)
    for index, given in enumerate(labels):
        label = _plain(given)
        values = [_plain(value) for value in label] if isinstance(label, list | tuple) else [label]
        is_value = all(isinstance(value, Real) and not isinstance(value, bool) for value in values)
        # Negated, so that NaN fails. Larger numbers would be infinite in float32.
        if (
            len(values) != len(names)
            or not is_value
            or not all(abs(value) <= LARGEST_FLOAT32 for value in values)
        ):
            raise InputError(f"{where(index)}: found {kind_of(label)}: must be {allowed}")
        targets[index] = values
    return targets


def _plain(value: Any) -> Any:
    """Returns a NumPy or JAX scalar or array as Python objects, and a member of an enumeration as its value."""
    # The str of a member of `class Label(str, Enum)` is "Label.name".
    value = value.value if isinstance(value, Enum) else value
    return value.tolist() if hasattr(value, "tolist") else value


def _whole(value: Any) -> int:
    """Returns a number without its fraction, and -1 if it is not finite."""
    try:
        return int(value)
    except (OverflowError, ValueError):
        return -1


def _is_value(name: str) -> bool:
    """Returns True if the name of a class is a number or a truth value."""
    return name.lower() in ("true", "false") or number_in(name) is not None
