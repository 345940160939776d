"""Rows hold every token exactly once, and the batch of a step does not depend on how the work is divided."""

import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlm_jax.config import DataConfig
from mlm_jax.config.batch_sizes import BatchSizes
from mlm_jax.data.batches import Rows, TrainingBatches, evaluation_batches
from mlm_jax.errors import InputError
from mlm_jax.shards.token_store import TokenStore
from mlm_jax.text.tokenizer import Tokenizer

WORDS = [f"w{i}" for i in range(40)]
PAD, UNK, CLS, SEP, MASK = range(5)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([" ".join(WORDS)] * 3, 200)


documents = st.lists(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=30).map(" ".join), min_size=1, max_size=12
)


def bodies(rows: np.ndarray) -> list[list[int]]:
    """Returns the tokens of each row between [CLS] and padding, including the last [SEP]; checks the frame."""
    found = []
    for row in rows.tolist():
        assert row[0] == CLS
        length = len(row) - next((i for i, token in enumerate(reversed(row)) if token != PAD), len(row))
        assert PAD not in row[:length]
        assert row[length - 1] == SEP
        assert CLS not in row[1:length]
        found.append(row[1:length])
    return found


@settings(max_examples=40)
@given(documents, st.integers(3, 40), st.sampled_from([5, 60, 10_000]), st.sampled_from(["sep", "none"]))
def test_packed_rows_hold_exactly_the_stream(
    tokenizer: Tokenizer, texts: list[str], length: int, shard_tokens: int, separator: str
) -> None:
    store = TokenStore.from_documents(texts, tokenizer, separator=separator, shard_tokens=shard_tokens)
    rows = Rows(store, tokenizer, DataConfig(sequence_length=length))
    found = bodies(rows.read(np.arange(rows.num_rows)))
    stream = np.concatenate([shard.tokens for shard in store.shards]).tolist()
    rebuilt: list[int] = []
    for shard in store.shards:
        end = len(rebuilt) + shard.num_tokens
        while len(rebuilt) < end:
            body = found.pop(0)
            expected = stream[len(rebuilt) : min(end, len(rebuilt) + length - 2)]
            # The row's own [SEP], unless the body ends in one already.
            assert body == (expected if expected[-1] == SEP else [*expected, SEP])
            rebuilt += expected
    assert rebuilt == stream
    assert not found


@settings(max_examples=40)
@given(documents, st.integers(3, 40), st.sampled_from([5, 60, 10_000]), st.sampled_from(["sep", "none"]))
def test_document_rows_split_long_documents(
    tokenizer: Tokenizer, texts: list[str], length: int, shard_tokens: int, separator: str
) -> None:
    store = TokenStore.from_documents(texts, tokenizer, separator=separator, shard_tokens=shard_tokens)
    rows = Rows(store, tokenizer, DataConfig(sequence_length=length, packing="document"))
    found = bodies(rows.read(np.arange(rows.num_rows)))
    for text in texts:
        ids = tokenizer.encode(text).tolist()
        for first in range(0, len(ids), length - 2):
            assert found.pop(0) == [*ids[first : first + length - 2], SEP]
    assert not found


@pytest.mark.parametrize("packing", ["packed", "document"])
def test_rows_are_read_in_any_combination(tokenizer: Tokenizer, packing: str) -> None:
    texts = [" ".join(WORDS[: 3 + i % 20]) for i in range(50)]
    store = TokenStore.from_documents(texts, tokenizer, shard_tokens=100)
    rows = Rows(store, tokenizer, DataConfig(sequence_length=16, packing=packing))
    whole = rows.read(np.arange(rows.num_rows))
    chosen = np.random.default_rng(0).permutation(rows.num_rows)[: rows.num_rows // 2]
    np.testing.assert_array_equal(rows.read(chosen), whole[chosen])
    assert whole.dtype == np.int32


def batches_of(tokenizer: Tokenizer, **changes: Any) -> TrainingBatches:
    texts = [" ".join(WORDS[i % 20 : i % 20 + 9]) + f" {WORDS[i % 40]}" for i in range(37)]
    rows = Rows(
        TokenStore.from_documents(texts, tokenizer, shard_tokens=150),
        tokenizer,
        DataConfig(sequence_length=32, packing="document"),
    )
    return replace(TrainingBatches(rows, BatchSizes(8), seed=0), **changes)


def test_an_epoch_holds_every_row_once_even_if_it_ends_inside_a_batch(tokenizer: Tokenizer) -> None:
    batches = batches_of(tokenizer)
    assert batches.rows.num_rows == 37
    stream = [batches.batch(step) for step in range(37)]
    seen = Counter(
        zip(np.ravel([b.epochs for b in stream]), np.ravel([b.example_ids for b in stream]), strict=True)
    )
    assert set(seen.values()) == {1}
    assert len(seen) == 8 * 37
    assert {epoch for epoch, _ in seen} == set(range(8))
    crossing = stream[4]
    assert set(crossing.epochs) == {0, 1}
    assert batches.epoch(37) == 8.0


def test_example_ids_identify_rows(tokenizer: Tokenizer) -> None:
    batches = batches_of(tokenizer)
    batch = batches.batch(3)
    np.testing.assert_array_equal(batch.token_ids, batches.rows.read(batch.example_ids.astype(np.int64)))
    assert batch.example_ids.dtype == batch.epochs.dtype == np.uint32


def test_the_batch_size_may_change_between_steps(tokenizer: Tokenizer) -> None:
    before, after = (
        batches_of(tokenizer),
        batches_of(tokenizer, sizes=BatchSizes(16, first_step=5, first_example=40)),
    )
    assert (after.sizes.examples(5), after.sizes.examples(7)) == (40, 72)
    assert after.epoch(7) == 72 / 37
    for field in range(3):
        halves = [before.batch(step)[field] for step in (7, 8)]
        np.testing.assert_array_equal(np.concatenate(halves), after.batch(6)[field])


def test_processes_divide_a_batch_without_overlap(tokenizer: Tokenizer) -> None:
    sizes = BatchSizes(16, 4, 60)
    whole = batches_of(tokenizer, sizes=sizes)
    parts = [
        batches_of(tokenizer, sizes=sizes, local_rows=lambda size, i=i: np.arange(size).reshape(4, -1)[i])
        for i in range(4)
    ]
    assert {len(whole.batch(step).epochs) for step in range(12)} == {4, 8, 12, 16}
    for step in range(12):
        for field in range(3):
            shares = [part.batch(step)[field] for part in parts]
            np.testing.assert_array_equal(np.concatenate(shares), whole.batch(step)[field])


def test_growing_batches_read_the_same_rows_in_the_same_order(tokenizer: Tokenizer) -> None:
    growing = batches_of(tokenizer, sizes=BatchSizes(16, 4, 60))
    read = np.concatenate([growing.batch(step).example_ids for step in range(12)])
    one_at_a_time = batches_of(tokenizer, sizes=BatchSizes(1))
    expected = [one_at_a_time.batch(step).example_ids[0] for step in range(len(read))]
    np.testing.assert_array_equal(read, expected)
    assert growing.epoch(12) == len(read) / 37


def test_reading_ahead_gives_the_same_batches(tokenizer: Tokenizer) -> None:
    batches = batches_of(tokenizer)
    for step, batch in zip(range(5, 11), batches.from_step(5, 11, prefetch=3), strict=True):
        for ahead, direct in zip(batch, batches.batch(step), strict=True):
            np.testing.assert_array_equal(ahead, direct)


def test_seeds_order_the_rows_differently(tokenizer: Tokenizer) -> None:
    assert (
        batches_of(tokenizer).batch(0).example_ids != batches_of(tokenizer, seed=1).batch(0).example_ids
    ).any()


@pytest.mark.parametrize("limit", [None, 2, 100])
def test_evaluation_reads_every_row_once_and_pads_the_last_batch(
    tokenizer: Tokenizer, limit: int | None
) -> None:
    rows = batches_of(tokenizer).rows
    stream = list(evaluation_batches(rows, 8, limit, padding_id=PAD))
    assert all(batch.token_ids.shape == (8, 32) for batch in stream)
    real = [batch.token_ids[:, 0] == CLS for batch in stream]
    ids = np.concatenate([batch.example_ids[r] for batch, r in zip(stream, real, strict=True)])
    if limit == 2:
        assert len(ids) == len(set(ids)) == 16
        assert ids[0] < 4
        assert ids[-1] > 32
    else:
        assert ids.tolist() == list(range(37))
        assert real[-1].sum() == 37 % 8
        assert (stream[-1].token_ids[~real[-1]] == PAD).all()


def test_another_tokenizer_is_rejected(tokenizer: Tokenizer) -> None:
    store = TokenStore.from_documents(["w1 w2"], tokenizer)
    other = Tokenizer.train(["some other words"], 100)
    with pytest.raises(InputError, match=f"prepared with {store.tokenizer_fingerprint[:12]}"):
        Rows(store, other, DataConfig())


@pytest.mark.release
def test_reading_300_000_rows_per_second(tokenizer: Tokenizer) -> None:
    texts = [" ".join(np.random.default_rng(i).choice(WORDS, 400)) for i in range(8000)]
    rows = Rows(TokenStore.from_documents(texts, tokenizer), tokenizer, DataConfig())
    batches = TrainingBatches(rows, BatchSizes(1024), seed=0)
    best = 0.0
    for _ in range(5):
        start = time.process_time()
        for step in range(40):
            batches.batch(step)
        best = max(best, 40 * 1024 / (time.process_time() - start))
    print(f"{best:,.0f} rows of 128 tokens a second of one core")
    assert best > 300_000


def test_opening_data_does_not_import_jax() -> None:
    script = "import sys, mlm_jax.preparation.merge, mlm_jax.data.sources; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
