"""What a step says over the network, read from the compiled program: kinds, counts and bytes for each kind of mesh.

The devices are simulated. XLA for CPU sums whole arrays where XLA for TPU would scatter the sum, so that no
reduce-scatter is seen here; tests/test_topology.py has one of a TPU.
"""

import math
from collections import defaultdict
from dataclasses import replace
from typing import Any

import jax
import pytest

from mlm_jax.config import ComputeConfig
from mlm_jax.parallel import sharding
from mlm_jax.pods.collectives import Collective, collectives_of
from mlm_jax.pods.hlo import parse
from mlm_jax.step.program import Program, device_bytes
from tests.small import CONFIG, MASKING, MODEL, SEP, program_of

MESHES = {"data": (8, 1, 1), "fsdp": (2, 4, 1), "tensor": (1, 1, 8), "fsdp × tensor": (2, 2, 2)}
# A vocabulary so large that the table stands out.
LARGER = replace(MODEL, vocabulary_size=1024)
LAYERS, ROWS, LENGTH, WIDTH = (
    LARGER.num_layers,
    CONFIG.batch_size,
    CONFIG.data.sequence_length,
    LARGER.hidden_dim,
)
TABLE = 4 * LARGER.vocabulary_size * WIDTH
# No row reaches the last positions, and no gradient comes from there.
UNUSED = 4 * (LARGER.max_sequence_length - LENGTH) * WIDTH
# Losses, norms and counts: what no parameter and no activation accounts for.
SCALARS = 1000

COMPUTES = [
    ComputeConfig(scan_unroll=1),
    pytest.param(ComputeConfig(scan_unroll=1, remat="full", loss_chunks=2), marks=pytest.mark.slow),
]


def budget_of(program: Program) -> dict[tuple[str, str], list[Collective]]:
    budget = defaultdict(list)
    for one in collectives_of(parse(program.compiled_train.as_text() or ""), program.mesh):
        budget[one.kind, " × ".join(one.axes)].append(one)
    return budget


def total(collectives: list[Collective]) -> int:
    return sum(one.count * one.bytes for one in collectives)


def program(kind: str, **changes: Any) -> Program:
    return program_of(MESHES[kind], model=LARGER, **changes)


# Bytes a step; of gathers also how many: XLA joins sums, and differently from release to release.
PINNED = {
    "data": {("all-reduce", "data"): 820_508},
    "fsdp": {
        ("all-gather", "fsdp"): 817_152,
        ("all-reduce", "data × fsdp"): 275_740,
        ("all-reduce", "fsdp"): 545_008,
        ("all-reduce", "data"): 139_264,
    },
    "tensor": {("all-reduce", "tensor"): 1_313_272, ("all-gather", "tensor"): 17_152},
    "fsdp × tensor": {
        ("all-gather", "fsdp"): 423_424,
        ("all-reduce", "tensor"): 328_440,
        ("all-reduce", "data × fsdp"): 143_128,
        ("all-reduce", "fsdp"): 272_624,
        ("all-reduce", "data"): 137_216,
        ("all-gather", "tensor"): 4_096,
        ("collective-permute", "fsdp × tensor"): 384,
        # The votes to stop, one a device.
        ("all-reduce", "data × fsdp × tensor"): 4,
    },
}
GATHERS = {"data": 0, "fsdp": 50, "tensor": 4, "fsdp × tensor": 50}


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind == "fsdp × tensor" else pytest.mark.slow) for kind in MESHES]
)
def test_a_step_says_what_it_said_when_this_was_written(kind: str) -> None:
    """To be changed only with a reason: fewer bytes are one."""
    budget = budget_of(program(kind))
    assert {key: total(found) for key, found in budget.items()} == PINNED[kind]
    gathers = [one.count for (what, _), found in budget.items() if what == "all-gather" for one in found]
    assert sum(gathers) == GATHERS[kind]


WORDS = {"unit": "whole_word", "continuation_token_ids": tuple(range(5, 256, 3))}


@pytest.mark.parametrize(
    "masks",
    [
        pytest.param(WORDS, id="whole words", marks=pytest.mark.slow),
        pytest.param(WORDS | {"unit": "span"}, id="spans"),
        pytest.param(
            WORDS | {"unit": "token", "quota": "document", "document_end_id": SEP},
            id="documents",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_devices_mask_their_rows_without_a_word_to_each_other(masks: dict[str, Any]) -> None:
    """Each takes as many turns as its own rows need."""
    budget = budget_of(program("data", masks=replace(MASKING, **masks)))
    assert {key: total(found) for key, found in budget.items()} == PINNED["data"]


def test_replicas_sum_each_gradient_once() -> None:
    """And that of the tied table twice: as it is looked up, and as it is the output embedding."""
    one = program("data")
    budget = budget_of(one)
    assert set(budget) == {("all-reduce", "data")}
    gradients = device_bytes(one.abstract_state.params) + TABLE - UNUSED
    assert gradients <= total(budget["all-reduce", "data"]) <= gradients + SCALARS


def test_fsdp_gathers_what_a_pass_needs_and_sums_each_gradient_once() -> None:
    """Scales and the layers' kernels once a pass, as ZeRO-3 does; all else, the table too, once for both."""
    one = program("fsdp")
    gathered = summed = 0
    for path, leaf in jax.tree.leaves_with_path(one.abstract_state.params):
        name = jax.tree_util.keystr(path)
        twice = "scale" in name or ("layers" in name and "kernel" in name)
        summed += 4 * leaf.size
        if "fsdp" in str(leaf.sharding.spec):
            gathered += 4 * leaf.size * (2 if twice else 1)
    budget = budget_of(one)
    assert total(budget["all-gather", "fsdp"]) == gathered
    gradients = summed + TABLE - UNUSED
    over_fsdp = total(budget["all-reduce", "fsdp"]) + total(budget["all-reduce", "data × fsdp"])
    assert gradients <= over_fsdp <= gradients + SCALARS
    # Of a kernel, and of the table as the output embedding, the replicas of a shard sum the shard alone, and of the
    # head's bias all of it; the rest is summed over both axes at once.
    leaves = jax.tree.leaves_with_path(one.abstract_state.params)
    kernels = [leaf for path, leaf in leaves if "kernel" in jax.tree_util.keystr(path)]
    table = TABLE // one.mesh.shape["fsdp"]
    assert total(budget["all-reduce", "data"]) == device_bytes(kernels) + table + 4 * LARGER.vocabulary_size


@pytest.mark.parametrize("kind", ["data", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_chunks_of_the_loss_say_no_more(kind: str) -> None:
    """But the sums of a chunk, three scalars: the table's gradient is summed over the devices after the last."""
    chunked = {
        key: total(found)
        for key, found in budget_of(
            program(kind, compute=ComputeConfig(scan_unroll=1, loss_chunks=4))
        ).items()
    }
    assert chunked.keys() == PINNED[kind].keys()
    assert all(0 <= chunked[key] - PINNED[kind][key] <= 3 * 4 * 3 for key in chunked)


def test_tensor_parallelism_sums_activations_alone() -> None:
    """Per layer [batch, length, width]: after attention and after the feed-forward; back, before them.

    Before attention query, key and value each come back on their own, which makes six.
    """
    budget = budget_of(program("tensor"))
    activation = 4 * ROWS * LENGTH * WIDTH
    layers = [one for one in budget["all-reduce", "tensor"] if one.count == LAYERS]
    assert sum(one.bytes for one in layers) == 6 * activation
    assert all(dims == (ROWS, LENGTH, WIDTH) for one in layers for dims in one.operands)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if "fsdp" in kind else pytest.mark.slow) for kind in MESHES]
)
@pytest.mark.parametrize("compute", COMPUTES)
def test_no_moment_is_gathered_and_no_stack_of_layers(kind: str, compute: ComputeConfig) -> None:
    """A moment has its parameter's shape: a stack of layers gathered whole would be one, or all weights at once."""
    one = program(kind, compute=compute)
    stacks = {
        leaf.sharding.shard_shape(leaf.shape)
        for leaf in jax.tree.leaves(one.abstract_state.params["encoder"]["layers"])
        if math.prod(leaf.shape) > LAYERS * WIDTH
    }
    for (what, _), found in budget_of(one).items():
        if what == "all-gather":
            assert not stacks & {dims for each in found for dims in each.operands}


@pytest.mark.parametrize(
    "kind", [*(pytest.param(kind, marks=pytest.mark.slow) for kind in ("data", "fsdp")), "fsdp × tensor"]
)
@pytest.mark.parametrize("compute", COMPUTES)
def test_no_device_holds_activations_of_the_whole_batch(kind: str, compute: ComputeConfig) -> None:
    """Rows are 16 over all devices; an array of 16 rows of the length would be one that the mesh did not split."""
    text = program(kind, compute=compute).compiled_train.as_text() or ""
    arrays = {
        array.dims: instruction.name
        for computation in parse(text).computations.values()
        for instruction in computation.instructions.values()
        for array in instruction.shapes
    }
    rows = ROWS // math.prod(MESHES[kind][:2])
    assert any(dims[:2] == (rows, LENGTH) for dims in arrays), "activations of a device's own rows"
    for dims, name in arrays.items():
        assert dims[:2] != (ROWS, LENGTH), name
        assert dims[:3] != (LAYERS, ROWS, LENGTH), name


WRONG_RULES = [
    # The feed-forward weights whole on every device: their sums vanish, the work is done eight times.
    ("tensor", "intermediate", ()),
    # fsdp splits the weights, and every row goes to all of its devices.
    pytest.param("fsdp", "batch", ("data",), marks=pytest.mark.slow),
    # The vocabulary whole on every device.
    pytest.param("tensor", "vocabulary", (), marks=pytest.mark.slow),
    # Nothing is left for fsdp to split.
    pytest.param("fsdp", "embed", (), marks=pytest.mark.slow),
    pytest.param("fsdp × tensor", "heads", (), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("kind", "axis", "rule"), WRONG_RULES)
def test_a_wrong_rule_breaks_the_budget(
    kind: str, axis: str, rule: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sharding.RULES, axis, rule)
    wrong = program_of.__wrapped__(MESHES[kind], model=LARGER)
    assert {key: total(found) for key, found in budget_of(wrong).items()} != PINNED[kind]
