"""Masks: which positions are selected, how many, what replaces their tokens, and what the result may depend on."""

import inspect
from dataclasses import replace
from math import ceil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from scipy import stats

from mlm_jax.config.masking import MaskingConfig, MaskingRecipe
from mlm_jax.errors import InputError
from mlm_jax.masking.masking import MaskedTokens, _as_array, example_keys, mask_and_count, mask_tokens
from mlm_jax.masking.rates import selection_table

PAD, UNK, CLS, SEP, MASK = range(5)
CONFIG = MaskingConfig(
    vocabulary_size=50, mask_token_id=MASK, mask_selection_length=6, unselectable_token_ids=(PAD, CLS, SEP)
)
masked = jax.jit(mask_tokens, static_argnums=2)

configs = st.builds(
    replace,
    st.just(CONFIG),
    mask_selection_rate=st.sampled_from([0.0, 0.07, 0.15, 0.5, 1.0]),
    mask_selection_length=st.sampled_from([1, 5, 16, 40]),
    selection=st.sampled_from(["ceil", "bernoulli", "bert"]),
    random_pool=st.sampled_from(["no_special", "full"]),
    mask_token_rate=st.sampled_from([0.0, 0.5, 0.8]),
    random_token_rate=st.sampled_from([0.0, 0.2]),
)


def rows_of(seed: int, *shape: int, padding: int = 0) -> np.ndarray:
    ids = np.random.default_rng(seed).integers(5, 50, shape).astype(np.int32)
    ids[..., 0] = CLS
    ids[..., shape[-1] - padding - 1] = SEP
    if padding:
        ids[..., -padding:] = PAD
    return ids


def assert_same(left: MaskedTokens, right: MaskedTokens) -> None:
    for name, a, b in zip(MaskedTokens._fields, left, right, strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


@settings(max_examples=20)
@given(configs, st.integers(0, 2**32 - 1), st.integers(0, 10))
def test_every_mask_is_well_formed(config: MaskingConfig, seed: int, padding: int) -> None:
    ids = rows_of(seed, 4, 24, padding=padding)
    out = masked(jax.random.key(seed), ids, config)
    assert out.mask_positions.shape == (4, config.mask_selection_length)
    assert out.mask_weights.dtype == jnp.float32
    for row, new, positions, labels, weights in zip(ids, *map(np.asarray, out), strict=True):
        k = int(weights.sum())
        assert weights.tolist() == [1.0] * k + [0.0] * (len(weights) - k)
        assert positions[k:].tolist() == labels[k:].tolist() == [0] * (len(weights) - k)
        assert all(np.diff(positions[:k]) > 0)
        np.testing.assert_array_equal(labels[:k], row[positions[:k]])
        assert not np.isin(row[positions[:k]], config.unselectable_token_ids).any()
        untouched = np.delete(np.arange(24), positions[:k])
        np.testing.assert_array_equal(new[untouched], row[untouched])


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.15, 1 / 3, 0.7, 1.0])
def test_ceil_rounds_the_product_in_float32(rate: float) -> None:
    config = replace(CONFIG, mask_selection_rate=rate, mask_selection_length=30)
    for n in (0, 1, 7, 10, 20, 29, 40, 100):
        ids = np.full(120, PAD, np.int32)
        ids[:n] = 9
        expected = min(int(np.ceil(np.float32(n) * np.float32(rate))), 30)
        assert masked(jax.random.key(n), ids, config).mask_weights.sum() == expected
    # 20 · 0.15 is exactly 3 only when the product is rounded to float32.
    assert np.ceil(np.float32(20) * np.float32(0.15)) != ceil(20 * np.float64(np.float32(0.15)))


@pytest.mark.parametrize("rate", [0.0, 0.15, 0.25, 0.5])
def test_bert_counts_special_tokens_and_rounds_half_to_even(rate: float) -> None:
    config = replace(CONFIG, selection="bert", mask_selection_rate=rate, mask_selection_length=9)
    for real in (3, 4, 10, 12, 30, 100):
        ids = rows_of(real, 120, padding=120 - real)
        expected = min(9, real - 2, max(1, round(real * rate)))
        assert masked(jax.random.key(real), ids, config).mask_weights.sum() == expected


def test_bernoulli_counts_are_binomial_up_to_the_limit() -> None:
    ids = np.tile(rows_of(0, 42), (4000, 1))
    config = replace(CONFIG, selection="bernoulli", mask_selection_rate=0.2, mask_selection_length=40)
    counts = np.asarray(masked(jax.random.key(1), ids, config).mask_weights.sum(1)).astype(int)
    expected = stats.binom.pmf(np.arange(41), 40, 0.2) * 4000
    groups = [counts == k for k in range(3, 15)] + [counts < 3, counts > 14]
    expected = [*expected[3:15], expected[:3].sum(), expected[15:].sum()]
    assert stats.chisquare([g.sum() for g in groups], expected).pvalue > 1e-4
    cut = masked(jax.random.key(1), ids, replace(config, mask_selection_length=6)).mask_weights.sum(1)
    np.testing.assert_array_equal(cut, np.minimum(counts, 6))


@pytest.mark.parametrize("selection", ["ceil", "bernoulli", "bert"])
def test_positions_are_uniform_even_when_the_limit_applies(selection: str) -> None:
    ids = np.tile(rows_of(0, 32), (6000, 1))
    config = replace(CONFIG, selection=selection, mask_selection_rate=0.3, mask_selection_length=4)
    out = masked(jax.random.key(2), ids, config)
    positions = np.asarray(out.mask_positions)[np.asarray(out.mask_weights).sum(1) == 4]
    assert stats.chisquare(np.bincount(positions.ravel(), minlength=32)[1:31]).pvalue > 1e-4
    # Jointly, too: the number of the four in the first half is hypergeometric.
    in_first_half = np.bincount((positions <= 15).sum(1), minlength=5)
    expected = stats.hypergeom.pmf(np.arange(5), 30, 15, 4) * len(positions)
    assert stats.chisquare(in_first_half, expected).pvalue > 1e-4


@pytest.mark.parametrize("pool", ["no_special", "full"])
def test_replacements_have_the_configured_rates(pool: str) -> None:
    ids = np.full((4000, 40), 7, np.int32)
    config = replace(CONFIG, random_pool=pool, mask_selection_rate=0.5, mask_selection_length=20)
    out = masked(jax.random.key(3), ids, config)
    new = np.take_along_axis(np.asarray(out.token_ids), np.asarray(out.mask_positions), 1).ravel()
    drawable = np.array([i for i in range(50) if pool == "full" or i not in (PAD, CLS, SEP, MASK)])
    expected = np.zeros(50)
    expected[drawable] = 0.1 / len(drawable)
    expected[MASK] += 0.8
    expected[7] += 0.1
    counts = np.bincount(new, minlength=50)
    assert counts[expected == 0].sum() == 0
    assert stats.chisquare(counts[expected > 0], (expected * new.size)[expected > 0]).pvalue > 1e-4


def test_a_mask_depends_only_on_its_example() -> None:
    ids = rows_of(4, 64, 48)
    whole = masked(example_keys(5, 2, np.arange(64)), ids, CONFIG)
    order = np.random.default_rng(0).permutation(64)[:17]
    assert_same(
        masked(example_keys(5, 2, order), ids[order], CONFIG), jax.tree.map(lambda x: x[order], whole)
    )
    one = mask_tokens(example_keys(5, 2, np.array([9]))[0], ids[9], CONFIG)
    assert_same(one, jax.tree.map(lambda x: x[9], whole))
    assert_same(masked(example_keys(5, np.full(64, 2), np.arange(64)), ids, CONFIG), whole)
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    for spec in (PartitionSpec(("a", "b")), PartitionSpec("a", "b"), PartitionSpec(None, ("a", "b"))):
        sharded = jax.device_put(ids, NamedSharding(mesh, spec))
        assert_same(masked(example_keys(5, 2, np.arange(64)), sharded, CONFIG), whole)


def test_seed_epoch_and_example_each_change_the_mask() -> None:
    ids = np.tile(rows_of(4, 48), (2, 1))
    base, again = (masked(example_keys(0, 0, np.arange(2)), ids, CONFIG) for _ in range(2))
    assert_same(base, again)
    assert (base.mask_positions[0] != base.mask_positions[1]).any()
    for keys in (example_keys(1, 0, np.arange(2)), example_keys(0, 1, np.arange(2))):
        assert (masked(keys, ids, CONFIG).mask_positions != base.mask_positions).any()


def test_padding_at_the_end_changes_nothing() -> None:
    ids = rows_of(6, 8, 32)
    keys = example_keys(0, 0, np.arange(8))
    longer = np.pad(ids, ((0, 0), (0, 16)))
    assert_same(
        masked(keys, ids, CONFIG)._replace(token_ids=longer),
        masked(keys, longer, CONFIG)._replace(token_ids=longer),
    )


def test_masks_are_pinned() -> None:
    """May change only in a release that states that earlier runs cannot be resumed."""
    out = masked(example_keys(0, 0, np.arange(2)), np.tile(np.arange(10, 42, dtype=np.int32), (2, 1)), CONFIG)
    assert out.mask_positions.tolist() == PINNED_POSITIONS
    assert (
        np.take_along_axis(np.asarray(out.token_ids), np.asarray(out.mask_positions), 1).tolist()
        == PINNED_IDS
    )


PINNED_POSITIONS = [[0, 4, 5, 16, 27, 0], [1, 6, 17, 22, 30, 0]]
PINNED_IDS = [[4, 4, 15, 4, 4, 4], [4, 39, 4, 4, 4, 10]]


def test_a_row_without_selectable_tokens_has_no_mask() -> None:
    for selection in ("ceil", "bernoulli", "bert"):
        ids = np.array([[CLS, SEP, PAD, PAD]], np.int32)
        out = masked(jax.random.key(0), ids, replace(CONFIG, selection=selection))
        assert out.mask_weights.sum() == 0
        np.testing.assert_array_equal(out.token_ids, ids)


def test_a_key_without_rows_is_folded_by_row_index() -> None:
    ids = rows_of(7, 5, 32)
    key = jax.random.key(8)
    keys = jnp.stack([jax.random.fold_in(key, row) for row in range(5)])
    assert_same(mask_tokens(key, ids, CONFIG), mask_tokens(keys, ids, CONFIG))


def test_the_count_is_the_one_before_the_limit() -> None:
    ids = rows_of(9, 64, 42)
    keys = example_keys(0, 0, np.arange(64))
    for selection in ("ceil", "bernoulli", "bert"):
        config = replace(CONFIG, selection=selection, mask_selection_rate=0.2, mask_selection_length=8)
        out, wanted = mask_and_count(keys, ids, config)
        np.testing.assert_array_equal(out.mask_weights.sum(1), np.minimum(wanted, 8))
        assert (wanted > 8).any() == (selection == "bernoulli")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mask_selection_rate", 1.5),
        ("mask_selection_rate", -0.1),
        ("mask_token_rate", 2.0),
        ("random_token_rate", 0.3),
        ("mask_selection_length", 0),
        ("mask_token_id", 50),
        ("mask_token_id", -1),
        ("unselectable_token_ids", (0, 50)),
        ("vocabulary_size", 0),
        ("selection", "poisson"),
        ("random_pool", "none"),
        ("unit", "sentence"),
    ],
)
def test_an_invalid_setting_is_named_with_its_value_and_range(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"MaskingConfig\.{field} = .*must be") as error:
        replace(CONFIG, **{field: value})
    assert repr(value) in str(error.value)


def test_rows_of_different_lengths_are_padded() -> None:
    ids = rows_of(7, 4, 20)
    lengths = [20, 3, 0, 11]
    padded = ids.copy()
    for row, length in enumerate(lengths):
        padded[row, length:] = PAD
    keys = example_keys(0, 0, np.arange(4))
    expected = mask_tokens(keys, padded, CONFIG)
    rows = [row[:length] for row, length in zip(ids, lengths, strict=True)]
    for ragged in (rows, [row.tolist() for row in rows], tuple(row.astype(np.uint16) for row in rows)):
        assert_same(mask_tokens(keys, ragged, CONFIG), expected)
    assert not expected.mask_weights[2].any()
    # A row's mask does not depend on how long the others are.
    assert_same(
        mask_tokens(keys[3:], rows[3:], CONFIG)._replace(token_ids=0),
        jax.tree.map(lambda x: x[3:], expected)._replace(token_ids=0),
    )


def test_rows_are_padded_with_the_padding_id() -> None:
    config = replace(CONFIG, padding_token_id=SEP)
    out = mask_tokens(jax.random.key(0), [[7, 8, 9], [7]], config)
    assert out.token_ids[1, 1:].tolist() == [SEP, SEP]
    maskable = replace(CONFIG, padding_token_id=UNK)
    with pytest.raises(ValueError, match="padding_token_id = 1: must be one of the unselectable_token_ids"):
        mask_tokens(jax.random.key(0), [[7, 8, 9], [7]], maskable)
    assert mask_tokens(jax.random.key(0), [[7, 8, 9], [7, 8, 9]], maskable).token_ids.shape == (2, 3)


@pytest.mark.parametrize(
    ("token_ids", "message"),
    [
        ([[7, 8], [9.5]], r"row 1 has shape \(1,\) and dtype float64: must be a list of integers"),
        ([[7, 8], ["a"]], "row 1 has shape .* and dtype <U1: must be a list of integers"),
        ([[7, 8], [None]], "row 1 has shape .* and dtype object: must be a list of integers"),
        ([[7, 8], [[9], [9]]], r"row 1 has shape \(2, 1\) and dtype int64: must be a list of integers"),
        ([[7, 8], [50]], r"row 1 has the id 50: must be in \[0, 50\)"),
        ([[-1], [7, 8]], r"row 0 has the id -1: must be in \[0, 50\)"),
        ([[7, 8], None], r"row 1 has shape \(\) and dtype object: must be"),
        ([[[7, 8], [9]]], "row 0 has lists of different lengths: must be"),
        (["seven", "eight"], r"row 0 has shape \(\) and dtype <U5: must be"),
        ([7, 50], r"token_ids has the id 50: must be in \[0, 50\)"),
        (np.array([[7, -100]]), "token_ids has the id -100: must be"),
        # As int32, this would be 0.
        (np.array([[7, 2**40]]), "token_ids has the id 1099511627776: must be"),
        (
            "seven",
            "^token_ids is a str: must be an integer array or a list of rows of token ids, which Tokenizer",
        ),
        ([], r"token_ids has shape \(0, 0\): must have at least one token"),
        ([[], []], r"token_ids has shape \(2, 0\): must have at least one token"),
    ],
)
def test_rows_that_are_not_ids_are_rejected(token_ids: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        mask_tokens(jax.random.key(0), token_ids, CONFIG)
    assert "\n" not in str(refused.value)


def test_ragged_tensors_are_lists_of_rows() -> None:
    class Ragged:
        def to_list(self) -> list[list[int]]:
            return [[7, 8, 9], [7]]

    assert _as_array(Ragged(), CONFIG).tolist() == [[7, 8, 9], [7, PAD, PAD]]


def test_rows_of_any_library() -> None:
    expected = mask_tokens(example_keys(0, 0, np.arange(2)), [[7, 8, 9], [7]], CONFIG)
    for rows in ([jnp.array([7, 8, 9]), jnp.array([7])], [np.array([7, 8, 9], np.uint8), (7,)]):
        assert_same(mask_tokens(example_keys(0, 0, np.arange(2)), rows, CONFIG), expected)


def test_rows_of_different_lengths_are_rejected_under_jit() -> None:
    for rows in ([[7, 8], [9]], [np.array([7, 8]), np.array([9])]):
        with pytest.raises(ValueError, match=r"^token_ids: rows of different lengths: must be padded before"):
            masked(jax.random.key(0), rows, CONFIG)
    same = [np.array([7, 8]), np.array([9, 7])]
    np.testing.assert_array_equal(
        masked(jax.random.key(0), same, CONFIG).token_ids,
        mask_tokens(jax.random.key(0), np.stack(same), CONFIG).token_ids,
    )


@pytest.mark.parametrize("ids", [0, None])
def test_ids_that_are_no_sequence_are_rejected(ids: object) -> None:
    with pytest.raises(
        InputError, match=r"unselectable_token_ids = .*: must be a tuple, each a whole number"
    ):
        replace(CONFIG, unselectable_token_ids=ids)


def test_arrays_of_objects_are_rejected() -> None:
    ragged = np.array([[7, 8], [9]], dtype=object)
    with pytest.raises(ValueError, match=r"^token_ids is a NumPy array of objects: must be an integer array"):
        _as_array(ragged, CONFIG)


@pytest.mark.parametrize("selection", ["ceil", "bert"])
@pytest.mark.parametrize("rate", [0.15, 1.0])
def test_without_a_selection_length_no_row_is_clipped(selection: str, rate: float) -> None:
    """Even if every token of the row can be selected."""
    config = replace(CONFIG, mask_selection_length=None, mask_selection_rate=rate, selection=selection)
    for length in (1, 20):
        ids = np.full((8, length), 9, np.int32)
        out, wanted = jax.jit(mask_and_count, static_argnums=2)(jax.random.key(length), ids, config)
        np.testing.assert_array_equal(out.mask_weights.sum(1), wanted)
        assert wanted.min() >= 1
        assert out.mask_positions.shape[1] <= max(1, ceil(length * rate) + 1)


def test_invalid_inputs_are_rejected() -> None:
    ids = rows_of(0, 3, 16)
    # Without the type checks of the tests.
    unchecked = inspect.unwrap(mask_and_count)
    with pytest.raises(ValueError, match=r"^token_ids is a NoneType: must be an integer array"):
        unchecked(jax.random.key(0), None, CONFIG)
    with pytest.raises(ValueError, match=r"^config is a MaskingRecipe: must be a MaskingConfig"):
        unchecked(jax.random.key(0), ids, MaskingRecipe())
    with pytest.raises(ValueError, match=r"^stage = 1: must be in \[0, 1\), the stages of the table"):
        mask_tokens(jax.random.key(0), ids, CONFIG, stage=1)
    # JAX would take the last stage.
    for stage in (np.int32(3), jnp.int32(-1), jnp.int32(3)):
        with pytest.raises(ValueError, match=r"^stage = -?\d: must be in \[0, 1\), the stages of the table"):
            unchecked(jax.random.key(0), ids, CONFIG, stage=stage)
    with pytest.raises(ValueError, match=r"^stage = 0.0: must be a whole number"):
        unchecked(jax.random.key(0), ids, CONFIG, stage=0.0)
    with pytest.raises(ValueError, match=r"^table is a str: must be a SelectionTable or None"):
        unchecked(jax.random.key(0), ids, CONFIG, "x")
    for shape in ((), (1, 3, 16)):
        with pytest.raises(
            ValueError, match=r"^token_ids has shape .*: must be \[length\] or \[batch, length\]"
        ):
            unchecked(jax.random.key(0), np.full(shape, 7), CONFIG)
    with pytest.raises(ValueError, match=r"^length = '5': must be a whole number, at least 1"):
        inspect.unwrap(selection_table)(CONFIG, "5")
    with pytest.raises(ValueError, match=r"^key is \[.*\]: must be a typed key") as error:
        unchecked([jax.random.key(0)] * 3, ids, CONFIG)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"key \(2,\) and token_ids \(3, 16\)"):
        mask_tokens(example_keys(0, 0, np.arange(2)), ids, CONFIG)
    with pytest.raises(ValueError, match="2\\*\\*32"):
        example_keys(0, 0, np.array([2**32]))


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        # A cast would give both examples the mask of example 0.
        ((0, 0, np.array([0.2, 0.7])), "example_ids has dtype float64: must be integers"),
        ((0, 0, jnp.array([0.2, 0.7])), "example_ids has dtype float32: must be integers"),
        ((0, 0, [-1]), r"example_ids: -1 is not in \[0, 2\*\*32\)"),
        ((0, 0, 3), r"example_ids has shape \(\): must be \[batch\]"),
        ((2**32, 0, [1]), "seed: 4294967296 is not in"),
        ((-1, 0, [1]), "seed: -1 is not in"),
        ((1.5, 0, [1]), "seed has dtype float64: must be integers"),
        ((0, -1, [1]), "epoch: -1 is not in"),
        ((0, [0, 1, 2], [1, 2]), r"epoch has shape \(3,\): must be \[\] or \(2,\), as example_ids"),
        ((0, 0.5, [1]), "epoch has dtype float64: must be integers"),
        ((0, np.array([0, 2**32]), [1, 2]), "epoch: 4294967296 is not in"),
    ],
)
def test_keys_are_of_whole_numbers_in_range(numbers: Any, message: str) -> None:
    # Without the type checks of the tests.
    with pytest.raises(ValueError, match=f"^{message}"):
        inspect.unwrap(example_keys)(*numbers)


def test_keys_are_the_same_for_lists_and_arrays() -> None:
    expected = jax.random.key_data(example_keys(2**32 - 1, 3, np.array([0, 2**32 - 1])))
    for numbers in (
        (2**32 - 1, [3, 3], [0, 2**32 - 1]),
        (np.array(2**32 - 1), np.array([3, 3]), jnp.array([0, 2**32 - 1], jnp.uint32)),
    ):
        np.testing.assert_array_equal(jax.random.key_data(example_keys(*numbers)), expected)
    assert example_keys(0, 0, []).shape == (0,)


def test_words_of_rows_of_different_lengths_are_padded() -> None:
    config = replace(CONFIG, unit="whole_word", words_from_data=True, mask_selection_rate=0.5)
    rows, words = [[7, 8, 9, 10], [11, 12]], [[False, True, False, True], [False, True]]
    padded = np.array([words[0], [*words[1], False, False]])
    expected = mask_tokens(jax.random.key(0), rows, config, continues_word=padded)
    unchecked = inspect.unwrap(mask_and_count)
    for ragged in (words, [np.array(row) for row in words]):
        assert_same(unchecked(jax.random.key(0), rows, config, continues_word=ragged)[0], expected)
    # As `word_ids` of tokenizers, which would be other words.
    with pytest.raises(ValueError, match=r"^continues_word has dtype int64: must be bool"):
        unchecked(jax.random.key(0), rows, config, continues_word=[[0, 0, 1, 1], [0, 0, 0, 0]])
    with pytest.raises(ValueError, match=r"^continues_word: must have as many values in a row as token_ids"):
        unchecked(jax.random.key(0), rows, config, continues_word=[[False] * 5, [False]])


def test_ids_of_special_tokens_may_be_an_array() -> None:
    assert replace(CONFIG, unselectable_token_ids=np.array([0, 1, 2, 3, 4])) == replace(
        CONFIG, unselectable_token_ids=(0, 1, 2, 3, 4)
    )
