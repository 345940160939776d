"""The mesh, the rules from logical axes to mesh axes, and the checks that the rules cover every parameter.

A weight names its dimensions by logical axes where it is declared; this file alone says what a mesh does with them.
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jax import Array
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mlm_jax.config import MeshConfig
from mlm_jax.errors import InputError

MESH_AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")

RULES: Mapping[str, tuple[str, ...]] = {
    # Activations.
    "batch": BATCH_AXES,
    "replica": ("data",),
    "shard": ("fsdp",),
    "row": (),
    "length": (),
    "masked": (),
    "hidden": (),
    # Weights. Tensor parallelism splits heads, the inner feed-forward width and the vocabulary (Shoeybi et al.
    # 2019); fsdp splits what is left, the model width (Rajbhandari et al. 2020, ZeRO-3).
    "layers": (),
    "vocabulary": ("tensor",),
    "position": (),
    "segment": (),
    "embed": ("fsdp",),
    "pooled": ("tensor",),
    "heads": ("tensor",),
    "head_dim": (),
    "intermediate": ("tensor",),
    "classes": (),
}


def make_mesh(config: MeshConfig, devices: list[jax.Device] | None = None) -> Mesh:
    """A (data, fsdp, tensor) mesh over `devices`, by default all there are. One device is a mesh of ones.

    With `config.dcn_data` the devices are as many blocks, each within slices, and `data` runs over the blocks
    outermost: of all collectives only those over `data` leave a slice.

    Raises:
        InputError: the sizes do not multiply to the number of devices, or dcn_data is not how many slices there are.
    """
    devices = jax.devices() if devices is None else list(devices)
    blocks = _slice_blocks(config.dcn_data, devices)
    sizes = [config.data, config.fsdp, config.tensor]
    if -1 in sizes:
        known = math.prod(size for size in sizes if size != -1)
        sizes[sizes.index(-1)] = max(1, len(blocks[0]) // known)
    if math.prod(sizes) * len(blocks) != len(devices):
        shape = " × ".join(f"{axis} {size}" for axis, size in zip(MESH_AXES, sizes, strict=True))
        slices = f"dcn_data {len(blocks)} × " if len(blocks) > 1 else ""
        raise InputError(
            f"mesh: {slices}{shape} is {math.prod(sizes) * len(blocks)} devices: "
            f"must be the {len(devices)} that there are"
        )
    # On a TPU the axes follow the torus; without a split an axis that is larger than a side would have no place.
    arrays = [create_device_mesh(sizes, block, allow_split_physical_axes=True) for block in blocks]
    # Named because jax's default may be Explicit, under which custom-partitioned kernels misbehave.
    return Mesh(np.concatenate(arrays), MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def _slice_blocks(count: int, devices: list[jax.Device]) -> list[list[jax.Device]]:
    """The devices as `count` blocks of equal size, none of which shares a slice with another.

    What is no TPU may have no slices (CPU) or one a host (GPU): neighbours in the order of jax.devices, which is
    that of the processes, make up a block.
    """
    slices = sorted({_slice_of(device) for device in devices})
    if devices[0].platform == "tpu" and len(slices) != count:
        raise InputError(
            f"mesh.dcn_data = {count}: must be the number of slices, {len(slices)}; the other sizes are within one"
        )
    if len(devices) % count:
        raise InputError(f"mesh.dcn_data = {count}: must divide the {len(devices)} devices that there are")
    # Sorting is stable: within a slice the order stays.
    ordered = sorted(devices, key=_slice_of)
    size = len(devices) // count
    blocks = [ordered[first : first + size] for first in range(0, len(devices), size)]
    for before, after in pairwise(blocks):
        if len(slices) > 1 and _slice_of(before[-1]) == _slice_of(after[0]):
            raise InputError(
                f"mesh.dcn_data = {count}: must not split a slice of the {len(slices)} that there are"
            )
    return blocks


def _slice_of(device: jax.Device) -> int:
    return getattr(device, "slice_index", None) or 0


def partition_spec(axes: tuple[str, ...]) -> PartitionSpec:
    """Where the rules put an array with those logical axes.

    Raises:
        ValueError: a logical axis has no rule, or two axes of one array want the same mesh axis.
    """
    entries: list[tuple[str, ...] | str | None] = []
    used: set[str] = set()
    for axis in axes:
        if axis not in RULES:
            raise ValueError(f"logical axis {axis!r} has no rule: add it to mlm_jax.parallel.sharding.RULES")
        mesh_axes = RULES[axis]
        if used & set(mesh_axes):
            raise ValueError(f"logical axes {axes}: two dimensions want mesh axis {used & set(mesh_axes)}")
        used |= set(mesh_axes)
        entries.append(mesh_axes[0] if len(mesh_axes) == 1 else mesh_axes or None)
    return PartitionSpec(*entries)


def constrain(x: Array, *axes: str) -> Array:
    """Pin an activation to what the rules say, where a mesh is in use; elsewhere `x` itself."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(axes))


def num_shards(*axes: str) -> int:
    """Into how many parts the rules split an array with those logical axes, on the mesh in use; 1 without one."""
    sizes = jax.sharding.get_abstract_mesh().shape
    return math.prod(sizes.get(mesh_axis, 1) for axis in axes for mesh_axis in RULES[axis])


def parameter_shardings(mesh: Mesh, abstract_model: nnx.Module) -> dict[str, Any]:
    """A NamedSharding for every parameter, as the nested dict that the parameters are.

    Raises:
        InputError: a mesh axis does not divide the dimension it splits; names the parameter and the axis.
        ValueError: a parameter was declared without one logical axis a dimension.
    """
    shardings = {}
    for path, variable in nnx.to_flat_state(nnx.state(abstract_model, nnx.Param)):
        name = "/".join(map(str, path))
        axes = variable.get_metadata().get("out_sharding")
        if axes is None or len(axes) != len(variable.shape):
            raise ValueError(f"{name}: shape {variable.shape} needs as many logical axes, not {axes}")
        for size, axis in zip(variable.shape, axes, strict=True):
            split = math.prod(mesh.shape[mesh_axis] for mesh_axis in RULES.get(axis, ()))
            if size % split:
                remedy = "; model.vocabulary_multiple pads it" if axis == "vocabulary" else ""
                raise InputError(
                    f"mesh.{'.'.join(RULES[axis])} = {split}: must divide {name}'s {axis} dimension, {size}{remedy}"
                )
        shardings[path] = NamedSharding(mesh, partition_spec(axes))
    return nnx.traversals.unflatten_mapping(shardings)


def optimizer_shardings(
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
    abstract_opt_state: Any,
    abstract_params: dict[str, Any],
    shardings: dict[str, Any],
) -> Any:
    """Each moment of a parameter's shape where the parameter lies (`shardings`), everything else replicated.

    So are the rows and columns of factored second moments: less than 2 MB of them for BERT-large. Left to itself,
    `jax.jit(optimizer.init)` returns replicated moments on a mesh of Auto axes.
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


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of a value that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of an array whose first dimension is the batch."""
    return NamedSharding(mesh, partition_spec(("batch",)))


def batch_ways(mesh: Mesh) -> int:
    """Into how many parts the mesh splits a batch."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def device_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of an array with one element a device."""
    return NamedSharding(mesh, PartitionSpec(MESH_AXES))


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Which rows of a batch this process's devices hold, ascending: int64 [rows].

    Processes share rows where an axis that does not split the batch spans them.
    """
    places = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in places.values()]))
