"""Batch sizes that grow, compared with a loop that counts examples."""

import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlm_jax.config import TrainConfig
from mlm_jax.config.batch_sizes import BatchSizes
from mlm_jax.errors import InputError


def counted(initial: int, final: int, warmup: int, steps: int) -> list[tuple[int, int]]:
    """Returns (examples before, size) of each step, counted one by one."""
    found, examples = [], 0
    for _ in range(steps):
        linear = initial + (final - initial) * min(examples, warmup) // warmup
        size = linear // initial * initial
        found.append((examples, size))
        examples += size
    return found


warmups = st.tuples(st.integers(1, 12), st.integers(2, 20), st.integers(1, 3000))


@given(warmups, st.integers(0, 200))
def test_sizes_grow_linearly_with_the_examples_from_any_step(
    warmup: tuple[int, int, int], start: int
) -> None:
    initial, factor, examples = warmup
    sizes = BatchSizes(initial * factor, initial, examples)
    expected = counted(initial, initial * factor, examples, 260)
    assert [(sizes.examples(step), sizes.size(step)) for step in range(260)] == expected
    resumed = replace(sizes, first_step=start, first_example=expected[start][0])
    later = range(start, 260)
    assert [(resumed.examples(step), resumed.size(step)) for step in later] == expected[start:]
    assert len(sizes.stages) <= factor


def test_by_hand() -> None:
    sizes = BatchSizes(16, 4, 48)
    # The size rises every 16 examples: four steps of 4, two of 8 that end at 32, two of 12 that end beyond 48.
    assert [sizes.size(step) for step in range(10)] == [4, 4, 4, 4, 8, 8, 12, 12, 16, 16]
    assert [sizes.examples(step) for step in (0, 4, 6, 8, 9)] == [0, 16, 32, 56, 72]
    assert [stage.first_step for stage in sizes.stages] == [0, 4, 6, 8]


def test_a_warmup_shorter_than_a_batch_skips_sizes() -> None:
    assert [stage.size for stage in BatchSizes(64, 8, 10).stages] == [8, 48, 64]


def test_any_step_is_found_quickly() -> None:
    sizes = BatchSizes(2**20, 2**4, 10**12)
    start = time.process_time()
    last = sizes.stages[-1]
    assert sizes.examples(10**12) == last.first_example + (10**12 - last.first_step) * 2**20
    assert sizes.size(10**12) == 2**20
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"initial_batch_size": 64},
            "initial_batch_size = 64: must be a divisor of batch_size = 32, and below",
        ),
        (
            {"initial_batch_size": 32},
            "initial_batch_size = 32: must be a divisor of batch_size = 32, and below",
        ),
        ({"initial_batch_size": 5}, "initial_batch_size = 5: must be a divisor of batch_size = 32"),
        ({"initial_batch_size": 0}, "initial_batch_size = 0: must be at least 1"),
        ({"batch_size_warmup_examples": 0}, "examples = 0: must be at least 1 with initial_batch_size"),
        ({"initial_batch_size": None}, "examples = 1000: must be 0 without initial_batch_size"),
        (
            {"num_steps": 77},
            "examples = 1000: must be smaller: the batch reaches its full size at step 77, not before num_steps = 77",
        ),
    ],
)
def test_an_invalid_warmup_is_rejected(changes: dict[str, int | None], message: str) -> None:
    config = TrainConfig(initial_batch_size=8, batch_size_warmup_examples=1000, num_steps=78)
    with pytest.raises(InputError, match=message):
        replace(config, **changes)
