"""The declared weights of a model, and the properties that follow from their logical axes.

A weight is declared once, with its shape and logical axes, by `mlm_jax.model.layers.parameter`. The axes determine its
sharding, if it is stacked by layer, if it is a matrix, and which dimensions are inputs; no other file derives any of
this from a weight's name. A path joins the names from the model to the weight with "/".
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from mlm_jax.errors import InputError
from mlm_jax.parallel.sharding import RULES, partition_spec, replicated


@dataclass(frozen=True)
class Weight:
    """A declared weight: `axes` has one logical axis per dimension of `shape`.

    Raises:
        ValueError: the axes do not match the shape, one has no sharding rule, or they are neither those of a vector
            nor those of a matrix.
    """

    path: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.axes) != len(self.shape):
            raise ValueError(f"{self.path}: shape {self.shape} needs as many logical axes, not {self.axes}")
        for axis in self.axes:
            if axis not in RULES:
                raise ValueError(
                    f"{self.path}: logical axis {axis!r} has no rule: add it to mlm_jax.parallel.sharding.RULES"
                )
        if "layers" in self.axes[1:] or not 1 <= len(self.sides) <= 2:
            raise ValueError(
                f"{self.path}: logical axes {self.axes}: must be a vector's or a matrix's, after 'layers' if stacked"
            )

    @property
    def stacked(self) -> bool:
        """True if the first dimension is the layer, so that each slice is a separate weight."""
        return self.axes[:1] == ("layers",)

    @property
    def sides(self) -> tuple[tuple[int, ...], ...]:
        """Dimensions of the inputs and of the outputs of a matrix, or of a vector, without the layer dimension.

        Heads and their width form one side. An embedding table counts as a matrix.
        """
        sides: list[tuple[int, ...]] = []
        for dimension, (before, axis) in enumerate(zip(("", *self.axes), self.axes, strict=False)):
            if (before, axis) == ("heads", "head_dim"):
                sides[-1] += (dimension,)
            elif axis != "layers":
                sides.append((dimension,))
        return tuple(sides)

    @property
    def is_matrix(self) -> bool:
        """True for the kernels of linear maps and for embedding tables, False for biases and norms."""
        return len(self.sides) == 2

    @property
    def side_shape(self) -> tuple[int, ...]:
        """Shape with one dimension per side, after the layer dimension."""
        layers = self.shape[:1] if self.stacked else ()
        return *layers, *(math.prod(self.shape[dimension] for dimension in side) for side in self.sides)


Weights = Mapping[str, Weight]
"""Weights by path."""


def declared_weights(model: nnx.Module) -> dict[str, Weight]:
    """Returns the weights of a model, which may be abstract, by path.

    Raises:
        ValueError: see `Weight`.
    """
    weights = {}
    for names, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
        path = "/".join(map(str, names))
        weights[path] = Weight(path, variable.shape, tuple(variable.get_metadata().get("out_sharding") or ()))
    return weights


def nested(by_path: Mapping[str, Any]) -> dict[str, Any]:
    """Returns values by path as a nested dict, which is the structure of the parameters."""
    tree: dict[str, Any] = nnx.traversals.unflatten_mapping(dict(by_path), sep="/")
    return tree


def parameter_shardings(mesh: Mesh, abstract_model: nnx.Module) -> dict[str, Any]:
    """Returns a NamedSharding for every parameter, as a nested dict.

    Raises:
        InputError: a mesh axis does not divide the dimension it splits. The message names the parameter and the axis.
        ValueError: see `Weight`.
    """
    shardings = {}
    for path, weight in declared_weights(abstract_model).items():
        for size, axis in zip(weight.shape, weight.axes, strict=True):
            split = math.prod(mesh.shape[mesh_axis] for mesh_axis in RULES[axis])
            if size % split:
                remedy = "; model.vocabulary_multiple pads it" if axis == "vocabulary" else ""
                raise InputError(
                    f"mesh.{'.'.join(RULES[axis])} = {split}: must divide {path}'s {axis} dimension, {size}{remedy}"
                )
        shardings[path] = NamedSharding(mesh, partition_spec(weight.axes))
    return nested(shardings)


def optimizer_shardings(
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
    abstract_opt_state: Any,
    abstract_params: dict[str, Any],
    shardings: dict[str, Any],
) -> Any:
    """Returns the sharding of the parameter for moments of its shape; everything else is replicated.

    Replicated arrays include the rows and columns of factored second moments, less than 2 MB for BERT-large. Without
    explicit shardings, `jax.jit(optimizer.init)` returns replicated moments on a mesh of Auto axes.
    """

    def is_masked(leaf: Any) -> bool:
        return isinstance(leaf, optax.MaskedNode)

    def place(moment: Any, param: Any, sharding: NamedSharding) -> Any:
        if is_masked(moment):
            return moment
        return sharding if moment.shape == param.shape else replicated(mesh)

    return optax.tree_utils.tree_map_params(
        optimizer,
        place,
        abstract_opt_state,
        abstract_params,
        shardings,
        transform_non_params=lambda _: replicated(mesh),
        is_leaf=is_masked,
    )
