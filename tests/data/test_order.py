"""The windowed order has every row once an epoch, in windows, in lanes, and is pinned."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlm_jax.data import order as orders
from mlm_jax.data.order import LANES, GlobalOrder, WindowedOrder, rows_per_block


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "WINDOW_BLOCKS", 128)


@settings(max_examples=80)
@given(st.integers(1, 20_000), st.integers(1, 40), st.integers(0, 2**32 - 1), st.integers(0, 5))
def test_an_epoch_has_every_row_once(num_rows: int, block_rows: int, seed: int, epoch: int) -> None:
    order = WindowedOrder(num_rows, seed, block_rows)
    epochs, rows = order.rows(epoch * num_rows + np.arange(num_rows))
    assert rows.dtype == np.int64
    assert (epochs == epoch).all()
    np.testing.assert_array_equal(np.sort(rows), np.arange(num_rows))


@settings(max_examples=40)
@given(st.integers(1, 20_000), st.integers(1, 40), st.integers(0, 1000))
def test_a_position_is_evaluated_by_itself(num_rows: int, block_rows: int, first: int) -> None:
    order = WindowedOrder(num_rows, 3, block_rows)
    positions = np.arange(first, first + 500)
    epochs, rows = order.rows(positions)
    chosen = np.random.default_rng(0).permutation(500)[:7]
    for whole, part in zip((epochs, rows), order.rows(positions[chosen]), strict=True):
        np.testing.assert_array_equal(part, whole[chosen])


@settings(max_examples=60)
@given(st.integers(1, 60_000), st.integers(1, 40), st.integers(0, 3))
def test_a_window_reads_few_blocks_and_a_lane_its_own(num_rows: int, block_rows: int, epoch: int) -> None:
    """Windows have at most WINDOW_BLOCKS blocks, the last two at least half as many, and each lane its share."""
    order = WindowedOrder(num_rows, 0, block_rows)
    positions = epoch * num_rows + np.arange(num_rows)
    starts = order.window_starts(positions)
    _, rows = order.rows(positions)
    windows = [positions[starts == start] for start in np.unique(starts)]
    for number, window in enumerate(windows):
        np.testing.assert_array_equal(window, np.arange(window[0], window[-1] + 1))
        blocks = np.unique(rows[window - positions[0]] // block_rows)
        np.testing.assert_array_equal(order.blocks_in_sequence(window), blocks)
        assert len(blocks) <= 128
        if len(windows) > 1:
            assert len(blocks) >= 128 // (1 if number < len(windows) - 2 else 2)
        for lane in range(0, LANES, 9):
            own = window[window % LANES == lane]
            read = np.unique(rows[own - positions[0]] // block_rows)
            np.testing.assert_array_equal(order.blocks_in_sequence(own), read)
            # Those of full windows have whole blocks; others share some with their neighbors.
            assert len(read) <= (2 if number < len(windows) - 2 else 4)


def test_rows_of_a_window_are_mixed() -> None:
    """Neighbors of a batch come from different blocks, each row of a window is equally likely at each of its places."""
    num_rows, block_rows = 128 * 50, 50
    places = np.stack(
        [WindowedOrder(num_rows, seed, block_rows).rows(np.arange(256))[1] for seed in range(400)]
    )
    assert len(np.unique(places[0] // block_rows)) > 100
    # Rows and blocks of the batch, over all seeds.
    for values, number in ((places // block_rows, 128), (places % block_rows, block_rows)):
        counts = np.bincount(values.ravel(), minlength=number)
        expected = places.size / number
        assert ((counts - expected) ** 2 / expected).sum() / number < 1.6
    # Two lanes at the same time are at places of their blocks that are no more alike than by chance.
    lanes = places[:, [0, 1]] % block_rows
    assert abs(np.corrcoef(lanes.T)[0, 1]) < 0.2


def test_a_window_has_the_shares_of_the_corpus() -> None:
    """A source that is a tenth of the corpus, in one stretch, is about a tenth of each window."""
    block_rows, num_windows = 20, 200
    num_rows = 128 * num_windows * block_rows
    shares = [
        (WindowedOrder(num_rows, seed, block_rows).rows(np.arange(num_rows))[1] < num_rows // 10)
        .reshape(num_windows, -1)
        .mean(1)
        for seed in range(5)
    ]
    assert np.mean(shares) == 0.1
    assert np.std(shares) < 1.1 * np.sqrt(0.1 * 0.9 / 128)


def test_seeds_and_epochs_differ() -> None:
    base = WindowedOrder(5000, 0, 10).rows(np.arange(5000))[1]
    for other in (
        WindowedOrder(5000, 1, 10).rows(np.arange(5000))[1],
        WindowedOrder(5000, 0, 10).rows(np.arange(5000, 10000))[1],
    ):
        assert (other != base).mean() > 0.98


def test_any_step_of_a_long_run_is_found_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    order = WindowedOrder(2**32, 0, 4161)
    calls = 0

    def counted(*arguments: object) -> np.ndarray:
        nonlocal calls
        calls += 1
        return permute(*arguments)

    permute = orders.permute
    monkeypatch.setattr(orders, "permute", counted)
    epochs, rows = order.rows(10**9 * 4096 + np.arange(4096))
    assert calls <= 4
    assert set(epochs) == {10**9 * 4096 // 2**32}
    assert ((rows >= 0) & (rows < 2**32)).all()
    assert len(np.unique(rows)) == 4096


@pytest.mark.parametrize("hosts", [1, 2, 4, 8])
@pytest.mark.parametrize("size", [8, 48, 64, 1000, 4096])
def test_a_batch_is_sorted_by_lane(size: int, hosts: int) -> None:
    """So a process reads few lanes, or at least not all."""
    order = WindowedOrder(10**6, 0, 100)
    lanes = [set() for _ in range(hosts)]
    for step in range(6):
        positions = order.arranged(step * size + np.arange(size))
        np.testing.assert_array_equal(np.sort(positions), step * size + np.arange(size))
        for own, part in zip(lanes, np.array_split(positions, hosts), strict=True):
            own.update((part % LANES).tolist())
    if size % 64 == 0:
        assert {len(own) for own in lanes} == {LANES // hosts}
    if size == 1000:
        assert max(map(len, lanes)) <= LANES // hosts + 2
    np.testing.assert_array_equal(GlobalOrder(9, 0).arranged(np.arange(4)), np.arange(4))


def test_the_order_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    """May change only in a release whose notes say that earlier runs cannot be resumed."""
    monkeypatch.undo()
    order = WindowedOrder(10**6, 0, 100)
    positions = [0, 1, 63, 64, 102_400, 999_999, 1_000_000]
    assert order.rows(np.array(positions))[1].tolist() == PINNED
    # Blocks of 1 MiB of rows of 126 tokens in two bytes.
    assert rows_per_block(10**9, 10**9 * 252) == 4161


PINNED = [251204, 365906, 189649, 52389, 82982, 66478, 438561]
