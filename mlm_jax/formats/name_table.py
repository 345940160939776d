"""A table of names that is read in both directions: another library's tensors ↔ the parameters here.

A row pairs a name there with a path here. `{layer}` in a name stands for the layer's number: there a tensor a layer,
here one array with a leading axis of layers. A row's layout says how a tensor there holds the same numbers:

    same      the array as it is here
    vector    flat: heads and head width in one dimension
    in_out    a matrix [inputs, outputs]: what a product has on its right, x · W
    out_in    a matrix [outputs, inputs]: torch's Linear
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from mlm_jax.errors import InputError
from mlm_jax.formats.model_folder import StoredModel, check_names, check_shape, flatten_params, nest_params

Layout = Literal["same", "vector", "in_out", "out_in"]


class Row(NamedTuple):
    """One line of a table."""

    name: str
    path: str
    layout: Layout = "same"
    layer: int | None = None
    """Of a row that is about one layer without `{layer}` in its name."""


class Tensor(NamedTuple):
    """A tensor of another library that can be read: its shape is known before."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]


@dataclass(frozen=True)
class Reading:
    """What was read from another library's folder."""

    model: StoredModel
    num_tensors: int
    """How many tensors the folder holds, dropped ones included."""
    dropped: Mapping[str, str]
    """Tensors that have no place here: name to the reason why nothing is lost."""
    files: Sequence[Path]
    """The files that were read."""


def linear(name: str, path: str, *, weight: str, bias: str, layout: Layout) -> tuple[Row, Row]:
    """The rows of a linear map: its kernel in that layout, its bias flat (or as it is here where that is)."""
    bias_layout: Layout = "same" if layout == "same" else "vector"
    return Row(f"{name}{weight}", f"{path}/kernel", layout), Row(f"{name}{bias}", f"{path}/bias", bias_layout)


def norm(name: str, path: str, *, scale: str, bias: str) -> tuple[Row, Row]:
    """The rows of a LayerNorm."""
    return Row(f"{name}{scale}", f"{path}/scale"), Row(f"{name}{bias}", f"{path}/bias")


class Place(NamedTuple):
    """Where one tensor of another library belongs."""

    path: str
    layer: int | None
    shape: tuple[int, ...]
    """Of the (layer's) parameter here."""
    layout: Layout

    @property
    def foreign_shape(self) -> tuple[int, ...]:
        """Of the tensor there."""
        if self.layout == "same":
            return self.shape
        if self.layout == "vector":
            return (prod(self.shape),)
        contracted = 2 if "attention/output" in self.path else 1
        matrix = (prod(self.shape[:contracted]), prod(self.shape[contracted:]))
        return matrix if self.layout == "in_out" else matrix[::-1]

    def from_foreign(self, array: np.ndarray) -> np.ndarray:
        """The parameter that a tensor there holds."""
        return (array.T if self.layout == "out_in" else array).reshape(self.shape)

    def to_foreign(self, array: np.ndarray) -> np.ndarray:
        """The tensor there that holds a parameter."""
        if self.layout == "out_in":
            return array.reshape(self.foreign_shape[::-1]).T
        return array.reshape(self.foreign_shape)


def places(rows: Sequence[Row], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Place]:
    """Every tensor that a table names for parameters of those shapes: name there to place here.

    Raises:
        ValueError: a parameter has no row, so the table could not carry the model.
    """
    table: dict[str, Place] = {}
    for name, path, layout, layer in rows:
        if path not in shapes:
            continue
        shape = shapes[path]
        if "{layer}" in name:
            for number in range(shape[0]):
                table[name.replace("{layer}", str(number))] = Place(path, number, shape[1:], layout)
        else:
            table[name] = Place(path, layer, shape if layer is None else shape[1:], layout)
    unnamed = set(shapes) - {place.path for place in table.values()}
    if unnamed:
        raise ValueError(f"no row for {sorted(unnamed)}")
    return table


def read_params(
    where: Path, rows: Sequence[Row], shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Parameters of those shapes, each filled from its tensor, in the tensors' dtype.

    Raises:
        InputError: a tensor is missing, has no place, or has another shape.
    """
    table = places(rows, shapes)
    check_names(where, set(tensors), set(table))
    for name, place in table.items():
        check_shape(where, name, tensors[name].shape, place.foreign_shape)
    flat: dict[str, np.ndarray] = {}
    for name, place in table.items():
        array = place.from_foreign(tensors[name].read())
        if place.layer is None:
            flat[place.path] = array
            continue
        if place.path not in flat:
            flat[place.path] = _aligned_empty(shapes[place.path], array.dtype)
        if flat[place.path].dtype != array.dtype:
            raise InputError(
                f"{where}: tensor {name} is {array.dtype}: must be {flat[place.path].dtype} as in the layers before"
            )
        flat[place.path][place.layer] = array
    return nest_params(flat)


def _aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array that begins where a cache line does: jax computes with such an array without copying it."""
    size = prod(shape) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def write_params(rows: Sequence[Row], params: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Every parameter as the other library's tensors: name and contiguous array, one after the other."""
    flat = flatten_params(params)
    for name, place in places(rows, {path: leaf.shape for path, leaf in flat.items()}).items():
        array = flat[place.path] if place.layer is None else flat[place.path][place.layer]
        yield name, np.ascontiguousarray(place.to_foreign(np.asarray(array)))
