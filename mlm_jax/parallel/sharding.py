"""Device mesh, and rules that map logical axes to mesh axes.

Weights are declared with logical axes; only this file defines which mesh axes split them.
"""

import math
from collections.abc import Mapping
from itertools import pairwise

import jax
import numpy as np
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
    # Weights. Tensor parallelism splits heads, the intermediate width and the vocabulary (Shoeybi et al. 2019); fsdp
    # splits the remaining model width (Rajbhandari et al. 2020, ZeRO-3).
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
    """Returns a (data, fsdp, tensor) mesh over `devices`, by default all of them. One device is a mesh of ones.

    `config.dcn_data` divides the devices into that many blocks along slices. The blocks are outermost in `data`, so
    that only collectives over `data` leave a slice.

    Raises:
        InputError: the product of the sizes is not the number of devices, or dcn_data is not the number of slices.
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
            f"must be the {len(devices)} available"
        )
    # On a TPU, the axes follow the torus; without splitting, an axis longer than a side of the torus would not fit.
    arrays = [create_device_mesh(sizes, block, allow_split_physical_axes=True) for block in blocks]
    # Auto is set because jax's default may be Explicit, which breaks custom-partitioned kernels.
    return Mesh(np.concatenate(arrays), MESH_AXES, axis_types=(AxisType.Auto,) * 3)


def _slice_blocks(count: int, devices: list[jax.Device]) -> list[list[jax.Device]]:
    """Divides the devices into `count` blocks of equal size that share no slice.

    Devices other than TPUs may have no slices (CPU) or one slice per host (GPU). Their blocks are consecutive in the
    order of jax.devices, which is the order of the processes.
    """
    slices = sorted({_slice_of(device) for device in devices})
    if devices[0].platform == "tpu" and len(slices) != count:
        raise InputError(
            f"mesh.dcn_data = {count}: must be the number of slices, {len(slices)}; the other sizes are within one"
        )
    if len(devices) % count:
        raise InputError(f"mesh.dcn_data = {count}: must divide the {len(devices)} devices")
    # Sorting is stable, so the order within a slice is kept.
    ordered = sorted(devices, key=_slice_of)
    size = len(devices) // count
    blocks = [ordered[first : first + size] for first in range(0, len(devices), size)]
    for before, after in pairwise(blocks):
        if len(slices) > 1 and _slice_of(before[-1]) == _slice_of(after[0]):
            raise InputError(f"mesh.dcn_data = {count}: must not split one of the {len(slices)} slices")
    return blocks


def _slice_of(device: jax.Device) -> int:
    return getattr(device, "slice_index", None) or 0


def partition_spec(axes: tuple[str, ...]) -> PartitionSpec:
    """Returns the PartitionSpec of an array with these logical axes.

    Raises:
        ValueError: a logical axis has no rule, or two axes of one array map to the same mesh axis.
    """
    entries: list[tuple[str, ...] | str | None] = []
    used: set[str] = set()
    for axis in axes:
        if axis not in RULES:
            raise ValueError(f"logical axis {axis!r} has no rule: add it to mlm_jax.parallel.sharding.RULES")
        mesh_axes = RULES[axis]
        if used & set(mesh_axes):
            raise ValueError(f"logical axes {axes}: two dimensions map to mesh axis {used & set(mesh_axes)}")
        used |= set(mesh_axes)
        entries.append(mesh_axes[0] if len(mesh_axes) == 1 else mesh_axes or None)
    return PartitionSpec(*entries)


def constrain(x: Array, *axes: str) -> Array:
    """Constrains an activation to the sharding of its logical axes on the current mesh; returns `x` without a mesh."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(axes))


def num_shards(*axes: str) -> int:
    """Returns the number of shards of an array with these logical axes on the current mesh; 1 without a mesh."""
    sizes = jax.sharding.get_abstract_mesh().shape
    return math.prod(sizes.get(mesh_axis, 1) for axis in axes for mesh_axis in RULES[axis])


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a value that every device holds in full."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array whose first dimension is the batch."""
    return NamedSharding(mesh, partition_spec(("batch",)))


def batch_ways(mesh: Mesh) -> int:
    """Returns the number of shards of a batch."""
    return math.prod(mesh.shape[axis] for axis in BATCH_AXES)


def device_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array with one element per device."""
    return NamedSharding(mesh, PartitionSpec(MESH_AXES))


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Returns the indices of the rows of a batch that this process's devices hold, ascending: int64 [rows].

    Processes hold the same rows if a mesh axis that does not split the batch spans them.
    """
    places = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    return np.unique(np.concatenate([np.arange(batch_size)[index] for index in places.values()]))
