"""Translates between another library's tensors and our parameters, with a table of names used in both directions."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mlm_jax.errors import InputError
from mlm_jax.families.names import Layout, Row
from mlm_jax.formats.model_folder import (
    StoredModel,
    flatten_params,
    nest_params,
)
from mlm_jax.formats.tensor_checks import check_names, check_shape, check_weight
from mlm_jax.parallel.weights import Weight


class Tensor(NamedTuple):
    """A tensor of another library. Its shape is known before it is read."""

    shape: tuple[int, ...]
    read: Callable[[], np.ndarray]

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)


@dataclass(frozen=True)
class Reading:
    """Result of reading another library's folder."""

    model: StoredModel
    tensors: Mapping[str, tuple[str, ...]]
    """Maps the names of all tensors in the folder to our parameters; to none if they were not converted."""
    dropped: Mapping[str, str]
    """Maps the names of tensors that were not converted to the reason why nothing is lost."""
    notes: Sequence[str]
    """Messages for the user: parts that were left out, and oddities of the files."""
    files: Sequence[Path]
    """Files that were read."""


class Place(NamedTuple):
    """Place of a foreign tensor, or of a part of one, in our parameters."""

    path: str
    layer: int | None
    """Index into a stacked parameter."""
    parameter: Weight
    """Our parameter, or one layer of it."""
    layout: Layout

    @property
    def foreign_shape(self) -> tuple[int, ...]:
        """Shape of the foreign tensor."""
        if self.layout == "same":
            return self.parameter.shape
        shape = self.parameter.side_shape
        return shape[::-1] if self.layout == "out_in" else shape

    def from_foreign(self, array: np.ndarray) -> np.ndarray:
        """Converts a foreign tensor to our parameter."""
        return (array.T if self.layout == "out_in" else array).reshape(self.parameter.shape)

    def to_foreign(self, array: np.ndarray) -> np.ndarray:
        """Converts our parameter to a foreign tensor."""
        if self.layout == "out_in":
            return array.reshape(self.foreign_shape[::-1]).T
        return array.reshape(self.foreign_shape)


@dataclass(frozen=True)
class Foreign:
    """A foreign tensor: one of our parameters, one layer of it, or several one after the other along the outputs."""

    places: tuple[Place, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor."""
        shapes = [place.foreign_shape for place in self.places]
        if len(shapes) == 1:
            return shapes[0]
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    def split(self, array: np.ndarray) -> Iterator[tuple[Place, np.ndarray]]:
        """Yields each place and our parameter there."""
        start = 0
        for place in self.places:
            stop = start + place.foreign_shape[0] if len(self.places) > 1 else len(array)
            yield place, place.from_foreign(array[start:stop])
            start = stop

    def join(self, flat: Mapping[str, Any]) -> np.ndarray:
        """Returns the tensor of our parameters by path, contiguous."""
        found = []
        for place in self.places:
            array = flat[place.path] if place.layer is None else flat[place.path][place.layer]
            found.append(place.to_foreign(np.asarray(array)))
        return np.ascontiguousarray(found[0] if len(found) == 1 else np.concatenate(found))


def foreign_tensors(
    rows: Sequence[Row], parameters: Mapping[str, Weight], layer_name: Callable[[int], str] = str
) -> dict[str, Foreign]:
    """Returns every foreign tensor of these parameters, by name.

    `layer_name` formats a layer's index, from 0, as in the other library.

    Raises:
        ValueError: a parameter has no row in the table.
    """
    table: dict[str, list[Place]] = {}
    for name, path, layout, first_layer in rows:
        if path not in parameters:
            continue
        weight = parameters[path]
        if not weight.stacked:
            table.setdefault(name, []).append(Place(path, None, weight, layout))
            continue
        one_layer = Weight(path, weight.shape[1:], weight.axes[1:])
        for layer in range(first_layer, weight.shape[0]):
            of_layer = name.format(layer=layer_name(layer))
            table.setdefault(of_layer, []).append(Place(path, layer, one_layer, layout))
    unnamed = set(parameters) - {place.path for found in table.values() for place in found}
    if unnamed:
        raise ValueError(f"no row for {sorted(unnamed)}")
    return {name: Foreign(tuple(found)) for name, found in table.items()}


def paths_of(
    rows: Sequence[Row], parameters: Mapping[str, Weight], layer_name: Callable[[int], str] = str
) -> dict[str, tuple[str, ...]]:
    """Returns the paths of our parameters in every foreign tensor of these parameters."""
    return {
        name: tuple(place.path for place in foreign.places)
        for name, foreign in foreign_tensors(rows, parameters, layer_name).items()
    }


def parts_in(rows: Sequence[Row], names: Mapping[str, Any]) -> list[str]:
    """Returns the parts of a model with tensors among `names`; always includes `encoder`."""
    found = [row.path.split("/")[0] for row in rows if row.name in names]
    return list(dict.fromkeys(["encoder", *found]))


def read_params(
    where: Path,
    rows: Sequence[Row],
    parameters: Mapping[str, Weight],
    tensors: Mapping[str, Tensor],
    layer_name: Callable[[int], str] = str,
) -> dict[str, Any]:
    """Reads parameters from foreign tensors, in the dtype of the tensors.

    Raises:
        InputError: a tensor is missing, unknown, of the wrong shape, not floating point or not finite, or layers have
            different dtypes.
    """
    table = foreign_tensors(rows, parameters, layer_name)
    check_names(where, set(tensors), set(table))
    for name, foreign in table.items():
        check_shape(where, name, tensors[name].shape, foreign.shape)
    flat: dict[str, np.ndarray] = {}
    for name, foreign in table.items():
        array = check_weight(where, name, tensors[name].read())
        check_shape(where, name, array.shape, foreign.shape)
        for place, ours in foreign.split(array):
            if place.layer is None:
                flat[place.path] = ours
                continue
            if place.path not in flat:
                flat[place.path] = _aligned_empty(parameters[place.path].shape, ours.dtype)
                # The layers before the first that has a tensor.
                flat[place.path][: place.layer] = 1
            if flat[place.path].dtype != ours.dtype:
                raise InputError(
                    f"{where}: tensor {name} is {ours.dtype}: must be {flat[place.path].dtype}, as in the layers before"
                )
            flat[place.path][place.layer] = ours
    return nest_params(flat)


def _aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Returns an array aligned to a cache line, which jax uses without copying it."""
    size = prod(shape) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def write_params(
    rows: Sequence[Row],
    parameters: Mapping[str, Weight],
    params: Mapping[str, Any],
    layer_name: Callable[[int], str] = str,
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields the names and contiguous arrays of the foreign tensors of all parameters."""
    flat = flatten_params(params)
    for name, foreign in foreign_tensors(rows, parameters, layer_name).items():
        yield name, foreign.join(flat)
