"""Texts in shared rows: every text once, rows that nothing overflows, little padding and few shapes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlm_jax.use.packed_texts import layouts, packed_rows, rounded_up
from tests.tiny import FRUIT, GOOD, tiny_masked_lm


@given(st.lists(st.integers(1, 300), min_size=1, max_size=200), st.sampled_from([300, 512]))
def test_every_text_has_its_own_place(lengths: list[int], longest: int) -> None:
    texts = [np.full(length, index + 1) for index, length in enumerate(lengths)]
    seen: list[int] = []
    for layout in layouts(lengths, longest):
        filled = layout.fill(texts, 0)
        assert filled.shape == (len(layout.starts), layout.length)
        assert layout.length <= longest
        for text, row, slot, first in zip(
            layout.texts, layout.rows, layout.slots, layout.firsts, strict=True
        ):
            start = layout.starts[row, slot]
            assert first == row * layout.length + start
            np.testing.assert_array_equal(filled[row, start : start + lengths[text]], text + 1)
        assert (filled > 0).sum() == sum(lengths[text] for text in layout.texts)
        # Every column where a text starts, in order, and the length of the row where there is none.
        missing = np.ones(layout.starts.shape, bool)
        missing[layout.rows, layout.slots] = missing[:, 0] = False
        assert (layout.starts[missing] == layout.length).all()
        assert (np.diff(layout.starts, axis=1) >= 0).all()
        seen += layout.texts.tolist()
    assert sorted(seen) == list(range(len(lengths)))


def test_a_text_goes_where_it_leaves_the_least_room() -> None:
    rows = packed_rows([60, 30, 50, 14, 34, 4, 3], 64)
    assert rows == [(64, [0, 5]), (64, [2, 3]), (64, [4, 1]), (64, [6])]


@pytest.mark.parametrize(
    ("number", "least", "size"),
    [(1, 2, 2), (2, 2, 2), (5, 2, 6), (64, 64, 64), (65, 64, 96), (97, 64, 128)],
)
def test_sizes(number: int, least: int, size: int) -> None:
    assert rounded_up(number, least) == size


def test_short_texts_cost_little_padding_and_few_shapes() -> None:
    """The texts are 2,000 of 20 to 40 tokens, and 200 of any length."""
    random = np.random.default_rng(0)
    lengths = [*random.integers(20, 40, 2000), *random.integers(3, 513, 200)]
    batches = list(layouts([int(length) for length in lengths], 512))
    computed = sum(layout.starts.shape[0] * layout.length for layout in batches)
    assert sum(lengths) / computed > 0.85
    assert len({(layout.starts.shape, layout.length) for layout in batches}) <= 20


def test_a_text_has_the_same_features_beside_any_others() -> None:
    model = tiny_masked_lm(num_layers=2, max_sequence_length=64)
    for pooling in ("mean", "none"):
        alone = [model.features([text], pooling=pooling)[0] for text in FRUIT]
        for texts in ([*GOOD, *FRUIT], [*reversed(FRUIT), "sea " * 50]):
            found = model.features(texts, pooling=pooling)
            for text, expected in zip(FRUIT, alone, strict=True):
                np.testing.assert_allclose(found[texts.index(text)], expected, rtol=0, atol=2e-6)
