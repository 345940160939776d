"""What collectives cost: by kind and axes, over the links of a slice and between slices."""

import pytest

from mlm_jax.pods.collectives import Collective
from mlm_jax.pods.report import _received, totals


def of(kind: str, size: int, *, crosses: bool = False, axes: tuple[str, ...] = ("data",)) -> Collective:
    return Collective(kind, axes, crosses, size, count=3, bytes=800, operands=())


@pytest.mark.parametrize(
    ("kind", "received"),
    [
        ("all-gather", 600),
        ("reduce-scatter", 600),
        ("all-to-all", 600),
        ("all-reduce", 1200),
        ("collective-permute", 800),
    ],
)
def test_what_a_ring_of_four_brings_a_device(kind: str, received: float) -> None:
    assert of(kind, 4).received_bytes == received
    assert _received(of(kind, 4), slices=1) == {"links": received}


def test_between_slices_goes_a_devices_share_alone() -> None:
    """Eight devices in two slices: summed in a slice, then a quarter of it with the other slice's."""
    assert _received(of("all-reduce", 8, crosses=True), slices=2) == {"links": 1200, "network": 200}
    # As TPU writes it: the sum within a slice is a collective of its own.
    assert _received(of("all-reduce", 2, crosses=True), slices=2) == {"links": 0, "network": 800}


def test_collectives_are_summed_by_kind_and_axes() -> None:
    found = totals(
        [of("all-gather", 4, axes=("fsdp",)), of("all-reduce", 2), of("all-reduce", 2, crosses=True)] * 2
    )
    assert {(total.kind, total.axes): (total.count, total.bytes) for total in found} == {
        ("all-gather", "fsdp"): (6, 4800),
        ("all-reduce", "data"): (6, 4800),
        ("all-reduce", "data (between slices)"): (6, 4800),
    }
