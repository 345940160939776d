"""Which devices a collective joins, in every notation, and what it moves."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mlm_jax.pods.collectives import collectives_of, device_groups
from mlm_jax.pods.hlo import parse
from tests.pods.test_hlo import TEXT


def mesh_of(*shape: int) -> Any:
    return SimpleNamespace(
        devices=np.zeros(shape), axis_names=("data", "fsdp", "tensor"), size=int(np.prod(shape))
    )


@pytest.mark.parametrize(
    ("attributes", "groups"),
    [
        ("channel_id=1, replica_groups={{0,1},{2,3}}, dimensions={1}", [[0, 1], [2, 3]]),
        ("replica_groups={}, to_apply=%add", [[0, 1, 2, 3]]),
        ("replica_groups=[2,2]<=[4], x", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), x", [[0, 2], [1, 3]]),
        ("replica_groups=[1,4]<=[4]", [[0, 1, 2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}, x", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}, x", [[0, 1, 2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}, x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=(3,2,1,0) {'b'}, x", [[3, 2], [1, 0]]),
        ("replica_groups=mesh['a'=4] {'a':(1)2}, x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(2)2}, x", [[0, 1], [2, 3]]),
        ("channel_id=3, source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
    ],
)
def test_device_groups_in_every_notation(attributes: str, groups: list[list[int]]) -> None:
    assert device_groups(attributes, 4).tolist() == groups


def test_a_notation_that_is_not_known_is_an_error() -> None:
    with pytest.raises(ValueError, match="no device groups"):
        device_groups("replica_groups=all", 4)


def test_each_collective_counts_once_an_iteration_with_its_bytes() -> None:
    gather, scatter = collectives_of(parse(TEXT), mesh_of(1, 4, 1))
    assert (gather.kind, gather.axes, gather.count) == ("all-gather", ("fsdp",), 4)
    assert (gather.bytes, gather.operands) == (8 * 4 * 2, ((2, 4),))
    assert gather.received_bytes == 6 * 4 * 2
    # A sum of which a device keeps its part alone.
    assert (scatter.kind, scatter.count, scatter.bytes) == ("reduce-scatter", 1, 8 * 4 * 4)
    assert scatter.received_bytes == 6 * 4 * 4


def test_the_axes_are_those_along_which_a_group_varies() -> None:
    def axes(shape: tuple[int, ...]) -> tuple[str, ...]:
        return collectives_of(parse(TEXT), mesh_of(*shape))[0].axes

    assert axes((4, 1, 1)) == ("data",)
    assert axes((2, 2, 1)) == ("data", "fsdp")
    assert axes((1, 2, 2)) == ("fsdp", "tensor")


def test_a_group_of_several_slices_is_known() -> None:
    text = TEXT.replace("num_partitions=4", "num_partitions=8").replace(
        "{{0,1,2,3}}", "{{0,4},{1,5},{2,6},{3,7}}"
    )
    gather = collectives_of(parse(text), mesh_of(4, 2, 1), slices=2)[0]
    assert (gather.axes, gather.crosses_slices) == (("data",), True)
    within = text.replace("{{0,4},{1,5},{2,6},{3,7}}", "{{0,2},{1,3},{4,6},{5,7}}")
    gather = collectives_of(parse(within), mesh_of(4, 2, 1), slices=2)[0]
    assert (gather.axes, gather.crosses_slices) == (("data",), False)


def test_what_slices_send_one_another_through_their_hosts_counts() -> None:
    """A module of several TPU slices has the devices of one; between slices it sends to the host."""
    send = (
        "  %sent = (f32[8,4]{1,0}, u32[], token[]) send(%b, %token), channel_id=10, is_host_transfer=true, "
        'frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}\n'
    )
    text = TEXT.replace("  ROOT %out", f"  %token = token[] after-all()\n{send}  ROOT %out")
    between = [c for c in collectives_of(parse(text), mesh_of(2, 4, 1), slices=2) if c.crosses_slices]
    assert [(c.kind, c.axes, c.group_size, c.bytes) for c in between] == [
        ("all-reduce", ("data",), 2, 8 * 4 * 4)
    ]
