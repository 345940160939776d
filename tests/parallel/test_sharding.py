"""Shardings of parameters and moments, read from the devices; complete rules; valid meshes."""

from dataclasses import replace
from itertools import cycle
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

from mlm_jax.config import ComputeConfig, MeshConfig
from mlm_jax.config.presets import PRESETS
from mlm_jax.errors import InputError
from mlm_jax.model import bert
from mlm_jax.model.bert import BertMaskedLM
from mlm_jax.model.layers import parameter
from mlm_jax.optim.layer_transforms import map_paths
from mlm_jax.parallel import sharding
from mlm_jax.parallel.sharding import constrain, make_mesh, partition_spec
from mlm_jax.parallel.weights import parameter_shardings
from tests.small import MODEL, batch_of, program_of

GOLDEN = {
    "encoder/embeddings/token": ("tensor", "fsdp"),
    "encoder/embeddings/position": (None, "fsdp"),
    "encoder/embeddings/segment": (None, "fsdp"),
    "encoder/embeddings/norm/scale": ("fsdp",),
    "encoder/embeddings/norm/bias": ("fsdp",),
    "encoder/layers/attention/query/kernel": (None, "fsdp", "tensor", None),
    "encoder/layers/attention/query/bias": (None, "tensor", None),
    "encoder/layers/attention/key/kernel": (None, "fsdp", "tensor", None),
    "encoder/layers/attention/key/bias": (None, "tensor", None),
    "encoder/layers/attention/value/kernel": (None, "fsdp", "tensor", None),
    "encoder/layers/attention/value/bias": (None, "tensor", None),
    "encoder/layers/attention/output/kernel": (None, "tensor", None, "fsdp"),
    "encoder/layers/attention/output/bias": (None, "fsdp"),
    "encoder/layers/attention_norm/scale": (None, "fsdp"),
    "encoder/layers/attention_norm/bias": (None, "fsdp"),
    "encoder/layers/feed_forward/up/kernel": (None, "fsdp", "tensor"),
    "encoder/layers/feed_forward/up/bias": (None, "tensor"),
    "encoder/layers/feed_forward/down/kernel": (None, "tensor", "fsdp"),
    "encoder/layers/feed_forward/down/bias": (None, "fsdp"),
    "encoder/layers/feed_forward_norm/scale": (None, "fsdp"),
    "encoder/layers/feed_forward_norm/bias": (None, "fsdp"),
    "encoder/pooler/kernel": ("fsdp", "tensor"),
    "encoder/pooler/bias": ("tensor",),
    "head/dense/kernel": ("fsdp", "tensor"),
    "head/dense/bias": ("tensor",),
    "head/norm/scale": ("fsdp",),
    "head/norm/bias": ("fsdp",),
    "head/bias": ("tensor",),
}


def mesh_of(data: int, fsdp: int, tensor: int) -> jax.sharding.Mesh:
    return make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor), jax.devices()[: data * fsdp * tensor])


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_is_sharded_as_recorded(name: str) -> None:
    config = replace(PRESETS[name], vocabulary_multiple=2)
    model = nnx.eval_shape(lambda: BertMaskedLM(config, key=jax.random.key(0)))
    found: dict[str, tuple[Any, ...]] = {}
    shardings = parameter_shardings(mesh_of(2, 2, 2), model)
    map_paths(lambda path, leaf: found.update({path: tuple(leaf.spec)}), shardings)
    assert found == GOLDEN


def test_a_gate_is_sharded_like_the_branch_it_multiplies() -> None:
    later = {"activation": "swiglu", "positions": "rotary", "norm": "rms_norm", "norm_placement": "pre"}
    config = replace(
        PRESETS["bert_tiny_en_uncased"], vocabulary_multiple=2, num_segments=0, biases=False, **later
    )
    model = nnx.eval_shape(lambda: BertMaskedLM(config, key=jax.random.key(0)))
    found: dict[str, tuple[Any, ...]] = {}
    shardings = parameter_shardings(mesh_of(2, 2, 2), model)
    map_paths(lambda path, leaf: found.update({path: tuple(leaf.spec)}), shardings)
    gone = ("encoder/embeddings/position", "encoder/embeddings/segment")
    kept = {
        path: axes
        for path, axes in GOLDEN.items()
        if path not in gone and (path == "head/bias" or not path.endswith("/bias"))
    }
    added = {
        "encoder/layers/feed_forward/gate/kernel": GOLDEN["encoder/layers/feed_forward/up/kernel"],
        "encoder/final_norm/scale": ("fsdp",),
    }
    assert found == kept | added


# The slack is what one axis cannot split: tensor leaves LayerNorm and the small embedding tables whole, and in a
# model of width 64 these are a quarter.
@pytest.mark.parametrize(
    ("mesh", "slack"),
    [
        ((2, 4, 1), 1.05),
        *(
            pytest.param(mesh, slack, marks=pytest.mark.slow)
            for mesh, slack in (((8, 1, 1), 1.0), ((2, 2, 2), 1.15), ((1, 1, 8), 1.25))
        ),
    ],
)
def test_devices_hold_their_shards_of_parameters_and_both_moments(
    mesh: tuple[int, int, int], slack: float
) -> None:
    program = program_of(mesh)
    state, _ = program.train(program.initial_state(), program.put(batch_of(0)), program.stop_votes(False))
    _, fsdp, tensor = mesh

    def bytes_on(device: jax.Device, tree: Any) -> int:
        shards = [shard for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards]
        return sum(shard.data.nbytes for shard in shards if shard.device == device)

    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    for device in program.mesh.devices.flat:
        share = bytes_on(device, state.params)
        assert bytes_on(device, moments) == 2 * share
        assert whole / (fsdp * tensor) <= share <= slack * whole / (fsdp * tensor)
    sharded = jax.tree.map(lambda leaf: leaf.sharding, (state.params, state.opt_state))
    planned = jax.tree.map(lambda leaf: leaf.sharding, program.abstract_state)
    assert sharded == (planned.params, planned.opt_state)


@pytest.mark.parametrize("mesh", [(8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 1, 8)])
def test_rows_are_split_over_both_data_and_fsdp(mesh: tuple[int, int, int]) -> None:
    batch = program_of(mesh).put(batch_of(0))
    rows = 16 // (mesh[0] * mesh[1])
    assert batch.token_ids.sharding.shard_shape((16, 24)) == (rows, 24)
    assert batch.example_ids.sharding.shard_shape((16,)) == (rows,)


def test_a_logical_axis_without_a_rule_is_an_error() -> None:
    with pytest.raises(ValueError, match="'depth' has no rule"):
        partition_spec(("depth",))


def test_two_dimensions_cannot_share_a_mesh_axis() -> None:
    with pytest.raises(ValueError, match="two dimensions map to mesh axis"):
        partition_spec(("heads", "intermediate"))


def test_a_parameter_without_axes_is_an_error() -> None:
    class Bare(nnx.Module):
        def __init__(self) -> None:
            self.weight = parameter(jax.random.key(0), (4, 4), ("embed",))

    with pytest.raises(ValueError, match="weight: shape \\(4, 4\\) needs as many logical axes"):
        parameter_shardings(mesh_of(1, 1, 1), nnx.eval_shape(Bare))


def test_changing_a_rule_changes_the_sharding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sharding.RULES, "heads", ())
    assert partition_spec(("embed", "heads", "head_dim")) == PartitionSpec("fsdp", None, None)


@pytest.mark.parametrize(
    ("mesh", "changes", "message"),
    [
        (
            (1, 1, 2),
            {"model": replace(MODEL, vocabulary_size=255)},
            r"mesh\.tensor = 2: .*token.*255; model.vocab",
        ),
        (
            (1, 1, 8),
            {"model": replace(MODEL, num_heads=4)},
            r"mesh\.tensor = 8: .*attention.*heads dimension, 4",
        ),
        ((1, 8, 1), {"batch_size": 12}, r"= 12: must be a multiple of mesh\.data × mesh\.fsdp = 8"),
        ((8, 1, 1), {"accumulation_steps": 4}, r"batch_size / accumulation_steps = 4: must be a multiple"),
    ],
)
def test_a_mesh_that_does_not_divide_a_dimension_is_rejected(
    mesh: tuple[int, int, int], changes: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        program_of(mesh, **changes)


def test_a_mesh_must_use_all_devices() -> None:
    assert dict(make_mesh(MeshConfig(tensor=2)).shape) == {"data": 4, "fsdp": 1, "tensor": 2}
    with pytest.raises(InputError, match=r"data 3 × fsdp 1 × tensor 1 is 3 devices: must be the 8"):
        make_mesh(MeshConfig(data=3))
    with pytest.raises(InputError, match="must be the 8"):
        make_mesh(MeshConfig(fsdp=16))


class SliceDevice:
    """The attributes of a TPU or GPU that a mesh reads."""

    def __init__(self, number: int, slice_index: int, platform: str) -> None:
        self.id, self.slice_index, self.platform = number, slice_index, platform
        self.device_kind, self.process_index, self.core_on_chip = platform, slice_index, 0
        self.coords = (number % 2, number // 2 % 2, 0)


def slices_of(*sizes: int, platform: str = "tpu") -> Any:
    numbers = [index for index, size in enumerate(sizes) for _ in range(size)]
    # In no order: a mesh goes by the slices, not by how the devices are listed.
    return [SliceDevice(n, index, platform) for n, index in enumerate(numbers)][::-1]


def test_the_data_axis_is_outermost_over_slices() -> None:
    mesh = make_mesh(MeshConfig(dcn_data=2, fsdp=2), slices_of(4, 4))
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "tensor": 1}
    rows = [[device.slice_index for device in row.flat] for row in mesh.devices]
    assert rows == [[0, 0], [0, 0], [1, 1], [1, 1]]


def test_simulated_slices_are_blocks_of_neighboring_devices() -> None:
    mesh = make_mesh(MeshConfig(dcn_data=2, data=2, tensor=2))
    assert [device.id for device in mesh.devices.flat] == list(range(8))
    assert dict(mesh.shape) == {"data": 4, "fsdp": 1, "tensor": 2}


@pytest.mark.parametrize(
    ("config", "devices", "message"),
    [
        (MeshConfig(), slices_of(4, 4), r"mesh\.dcn_data = 1: must be the number of slices, 2"),
        (MeshConfig(dcn_data=4), slices_of(4, 4), r"mesh\.dcn_data = 4: must be the number of slices, 2"),
        (MeshConfig(dcn_data=2), slices_of(4), r"mesh\.dcn_data = 2: must be the number of slices, 1"),
        (MeshConfig(dcn_data=3), None, r"mesh\.dcn_data = 3: must divide the 8 devices"),
        (
            MeshConfig(dcn_data=2, data=3),
            None,
            r"dcn_data 2 × data 3 × fsdp 1 × tensor 1 is 6 devices: must be the 8",
        ),
        (MeshConfig(dcn_data=4), slices_of(4, 4, platform="gpu"), "must not split one of the 2 slices"),
    ],
)
def test_slices_that_do_not_match_the_config_are_rejected(
    config: MeshConfig, devices: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make_mesh(config, devices)


def test_gpu_hosts_need_no_slice_indices() -> None:
    assert make_mesh(MeshConfig(fsdp=8), slices_of(4, 4, platform="gpu")).shape["fsdp"] == 8


LAST_RESORT = "Involuntary full rematerialization"
CHUNKED = ComputeConfig(remat="full", loss_chunks=2)


@pytest.mark.usefixtures("no_compilation_cache")
@pytest.mark.parametrize(
    ("mesh", "compute"),
    [
        ((2, 2, 2), CHUNKED),
        *(
            pytest.param(mesh, compute, marks=pytest.mark.slow)
            for mesh in ((2, 4, 1), (2, 2, 2), (1, 1, 8))
            for compute in (ComputeConfig(), CHUNKED)
            if (mesh, compute) != ((2, 2, 2), CHUNKED)
        ),
    ],
)
def test_the_partitioner_never_replicates_as_a_last_resort(
    mesh: tuple[int, int, int], compute: ComputeConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    program_of.__wrapped__(mesh, compute=compute).compiled_train  # noqa: B018
    assert LAST_RESORT not in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("no_compilation_cache")
def test_the_partitioner_warns_if_it_replicates_as_a_last_resort(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The warning that the test above forbids appears if every second activation is split along other dimensions."""
    splits = cycle([PartitionSpec("data"), PartitionSpec(None, "tensor", "fsdp")])

    def misplaced(array: jax.Array, *axes: str) -> jax.Array:
        if axes != ("batch", "length", "hidden"):
            return constrain(array, *axes)
        return jax.lax.with_sharding_constraint(array, next(splits))

    monkeypatch.setattr(bert, "constrain", misplaced)
    program_of.__wrapped__((2, 2, 2)).compiled_train  # noqa: B018
    assert LAST_RESORT in capfd.readouterr().err


def test_a_padded_vocabulary_fits_any_tensor_axis() -> None:
    model = replace(MODEL, vocabulary_size=250, vocabulary_multiple=8)
    token = program_of((1, 1, 8), model=model).abstract_state.params["encoder"]["embeddings"]["token"]
    assert token.shape == (256, 64)
    assert token.sharding.shard_shape(token.shape) == (32, 64)
    assert np.prod(token.shape) == 256 * 64
