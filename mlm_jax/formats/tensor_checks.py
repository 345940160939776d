"""Checks that every format makes of the tensors it reads: names, shapes, and values that can be weights."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from mlm_jax.errors import InputError, one_line
from mlm_jax.files.git_lfs import check_no_pointer_file

_DTYPES = tuple(np.dtype(name) for name in (np.float32, np.float16, ml_dtypes.bfloat16, np.float64))
_LARGEST_FLOAT32 = float(np.finfo(np.float32).max)
# Files of weights have at most one element per byte. Compressed and sparse ones can claim any number.
_ELEMENTS_PER_BYTE = 8
_ALWAYS_ALLOWED_ELEMENTS = 1 << 22


def check_names(where: str | Path, found: set[str], wanted: set[str]) -> None:
    """Raises InputError with the names of the first few tensors that are missing or unknown."""
    for names, problem in ((wanted - found, "missing"), (found - wanted, "unknown")):
        if names:
            raise InputError(f"{where}: {len(names)} {problem} tensor{'s' * (len(names) > 1)}: {some(names)}")


def check_shape(where: str | Path, name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    """Raises InputError if a tensor does not have the shape required by the config."""
    if tuple(found) != tuple(wanted):
        raise InputError(
            f"{where}: tensor {name} has shape {tuple(found)}: the config requires {tuple(wanted)}"
        )


def check_weight(where: str | Path, name: str, array: np.ndarray) -> np.ndarray:
    """Returns the array unchanged.

    Raises:
        InputError: it is not floating point, or has values that are not finite in float32, in which models compute.
    """
    if array.dtype not in _DTYPES:
        raise InputError(
            f"{where}: tensor {name} is {array.dtype}: weights must be {', '.join(map(str, _DTYPES))}"
        )
    wrong = array.size - np.count_nonzero(_is_finite(array))
    if wrong:
        raise InputError(
            f"{where}: tensor {name} has {wrong} values that are not finite float32 numbers, of {array.size}"
        )
    return array


def _is_finite(array: np.ndarray) -> np.ndarray:
    if array.dtype == ml_dtypes.bfloat16:
        # Several times faster than NumPy's function, which converts each value.
        bits = np.uint16(0x7F80)
        finite: np.ndarray = (array.view(np.uint16) & bits) != bits
        return finite
    return np.abs(array) <= _LARGEST_FLOAT32 if array.dtype == np.float64 else np.isfinite(array)


def check_expansion(file: Path, shapes: Iterable[tuple[int, ...]]) -> None:
    """Raises InputError if a file's tensors would need far more memory than the file has bytes."""
    size, elements = file.stat().st_size, sum(prod(shape) for shape in shapes)
    if elements > _ALWAYS_ALLOWED_ELEMENTS + _ELEMENTS_PER_BYTE * size:
        raise InputError(
            f"{file}: refused: its {size:,} bytes would expand to {elements:,} numbers, which trained weights do not"
        )


def some(names: Iterable[str]) -> str:
    """Returns the first three names in order, and an ellipsis if there are more."""
    ordered = sorted(names)
    return ", ".join(ordered[:3]) + (", …" if len(ordered) > 3 else "")


@contextmanager
def open_tensors(file: Path) -> Iterator[Any]:
    """Opens a safetensors file, whose tensors are read on demand. Raises InputError if it is missing or damaged."""
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    check_no_pointer_file(file)
    try:
        opened = safe_open(file, framework="numpy")
    except SafetensorError as error:
        raise InputError(f"{file}: damaged or truncated: {one_line(error)}") from error
    with opened:
        yield opened


def read_tensor(file: Path, opened: Any, name: str) -> np.ndarray:
    """Returns a tensor of an opened safetensors file. Raises InputError if NumPy does not support its dtype."""
    try:
        array: np.ndarray = opened.get_tensor(name)
    # safetensors raises TypeError, AttributeError or its own error for dtypes that NumPy does not have.
    except Exception as error:
        raise InputError(f"{file}: tensor {name}: {one_line(error)}") from error
    return array
