"""Programs for fewer rows have no larger microbatches, so they need no more memory."""

import jax
import numpy as np
import pytest

from mlm_jax.errors import InputError
from tests.small import batch_of, program_of


@pytest.mark.parametrize(
    ("mesh", "accumulation", "expected"),
    [
        ((1, 1, 1), 1, {4: 1, 8: 1, 12: 1, 16: 1}),
        # Microbatches of 8 at most, in multiples of four.
        ((1, 1, 1), 2, {4: 1, 8: 1, 12: 3, 16: 2}),
        ((2, 2, 2), 2, {4: 1, 8: 1, 12: 3, 16: 2}),
    ],
)
def test_smaller_batches_have_no_larger_microbatches(
    mesh: tuple[int, int, int], accumulation: int, expected: dict[int, int]
) -> None:
    program = program_of(mesh, accumulation_steps=accumulation)
    for rows, count in expected.items():
        with_batch_size = program.with_batch_size(rows)
        assert with_batch_size.config.batch_size == rows
        assert with_batch_size.config.accumulation_steps == with_batch_size.setup.accumulation_steps == count
    assert program.with_batch_size(16) is program, "which is compiled already"


@pytest.mark.slow
def test_a_program_for_fewer_rows_trains_without_more_memory() -> None:
    program = program_of((2, 2, 2), accumulation_steps=2)
    small = program.with_batch_size(12)
    temporary = [p.compiled_train.memory_analysis().temp_size_in_bytes for p in (small, program)]
    assert temporary[0] <= temporary[1]
    batch = batch_of(0, rows=12)
    with jax.set_mesh(program.mesh):
        state, metrics = small.train(program.initial_state(), small.put(batch), small.stop_votes(False))
    assert metrics.real_tokens == np.count_nonzero(batch.token_ids)
    assert jax.tree.map(lambda x: x.sharding, state) == jax.tree.map(
        lambda x: x.sharding, program.abstract_state
    )


def test_the_mesh_must_divide_the_initial_batch() -> None:
    with pytest.raises(InputError, match=r"initial_batch_size = 2: must be a multiple of .* = 4"):
        program_of((2, 2, 2), initial_batch_size=2, batch_size_warmup_examples=40)
