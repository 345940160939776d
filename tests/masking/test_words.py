"""Whole words, spans and document quotas, compared with loops over Python lists that draw the same numbers."""

from dataclasses import replace
from functools import partial
from itertools import permutations
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec
from scipy import stats

from mlm_jax.config.masking import MaskingConfig, MaskingRecipe
from mlm_jax.data.sources import resolve_masking
from mlm_jax.masking.masking import example_keys, mask_and_count, mask_tokens
from mlm_jax.masking.rates import selection_table
from mlm_jax.text.tokenizer import Tokenizer
from mlm_jax.threefry import random_pair
from tests.masking.test_masking import assert_same
from tests.run_small import run_python

PAD, UNK, CLS, SEP, MASK = range(5)
# Ids from 35 continue a word.
CONFIG = MaskingConfig(
    vocabulary_size=50,
    mask_token_id=MASK,
    mask_selection_length=6,
    unselectable_token_ids=(PAD, CLS, SEP),
    continuation_token_ids=tuple(range(35, 50)),
    document_end_id=SEP,
)
masked = jax.jit(mask_tokens, static_argnums=2)
masked_and_counted = jax.jit(mask_and_count, static_argnums=2)

UNITS = [
    ("whole_word", "row", "ceil"),
    ("whole_word", "row", "bernoulli"),
    ("span", "row", "bert"),
    ("token", "document", "bert"),
    ("whole_word", "document", "bert"),
    ("span", "document", "ceil"),
]
ROWS = 8

Word = range


def rows_of(seed: int, rows: int, length: int) -> np.ndarray:
    """[CLS] documents of random length, a [SEP] after each, some padding."""
    random = np.random.default_rng(seed)
    ids = random.integers(5, 50, (rows, length)).astype(np.int32)
    ids[random.random(ids.shape) < 0.12] = SEP
    ids[:, 0] = CLS
    for row in ids:
        end = random.integers(1, length + 1)
        row[end - 1], row[end:] = SEP, PAD
    return ids


def words_in(row: np.ndarray, config: MaskingConfig) -> list[Word]:
    words: list[Word] = []
    for position, token in enumerate(row.tolist()):
        if token in config.unselectable_token_ids:
            continue
        follows = bool(words) and words[-1].stop == position
        if config.unit != "token" and follows and token in config.continuation_token_ids:
            words[-1] = Word(words[-1].start, position + 1)
        else:
            words.append(Word(position, position + 1))
    return words


class Drawn:
    """The random numbers of a row's key, in the order in which turns draw them."""

    def __init__(self, key: jax.Array) -> None:
        self._pairs = iter(np.asarray(many_pairs(key)).tolist())

    def pair(self) -> tuple[int, int]:
        return next(self._pairs)


many_pairs = jax.jit(lambda key: jax.vmap(partial(random_pair, key))(jnp.arange(160)))


def span_length(number: int) -> int:
    """Length for a random uint32: geometric, truncated at 10 and renormalized."""
    probabilities = np.array([0.2 * 0.8**n for n in range(10)])
    return (
        int(np.searchsorted(np.cumsum(probabilities / probabilities.sum())[:9], number / 2**32, "right")) + 1
    )


def turns(drawn: Drawn, words: list[Word], chosen: set[int], left: int, unit: str, at_least: int = 0) -> None:
    """Adds words or spans to `chosen` until `left` more positions are chosen or no free word remains."""
    free, turn = [word for word in words if word.start not in chosen], 0
    # When one token is left, words of several tokens are skipped at once; a new document still takes a turn.
    if left == 1 and not at_least:
        free = [word for word in free if len(word) == 1]
    while (left and free) or turn < at_least:
        which, how_long = drawn.pair()
        first = free[which * len(free) >> 32]
        at, wanted = words.index(first), span_length(how_long) if unit == "span" else 1
        end = first.start
        for word in words[at : at + wanted]:
            if word.start != end or word.start in chosen or word.stop - first.start > left:
                break
            end = word.stop
        chosen.update(range(first.start, end))
        left -= end - first.start
        free = [word for word in free if word != first and word.start not in chosen]
        free = [word for word in free if left != 1 or len(word) == 1]
        turn += 1


def quota_of(config: MaskingConfig, selectable: int, real: int) -> int:
    if config.selection == "ceil":
        return int(np.ceil(np.float32(selectable) * np.float32(config.mask_selection_rate)))
    return min(selectable, max(1, round(real * config.mask_selection_rate)))


def reference(
    key: jax.Array, row: np.ndarray, config: MaskingConfig, words: list[Word] | None = None
) -> tuple[list[int], int]:
    """Returns the positions, ascending, and the number that the rule asks for; words are by default those of ids."""
    select_key, limit, chosen = jax.random.split(key, 3)[0], config.mask_selection_length, set()
    words, real = list(words or words_in(row, config)), row != config.padding_token_id
    if config.quota == "document":
        drawn, wanted, start = Drawn(select_key), 0, 0
        for end in [*np.flatnonzero(row[:-1] == config.document_end_id).tolist(), len(row) - 1]:
            own = [word for word in words if start <= word.start <= end]
            quota = quota_of(config, sum(map(len, own)), int(real[start : end + 1].sum()))
            if own:
                turns(drawn, own, chosen, min(quota, max(0, limit - wanted)), config.unit, at_least=1)
            wanted, start = wanted + quota, end + 1
        return sorted(chosen), wanted
    if config.unit == "whole_word":
        numbers = (np.asarray(jax.random.bits(select_key, row.shape)) >> 1).tolist()
        words.sort(key=lambda word: numbers[word.start])
        if config.selection == "bernoulli":
            words = [w for w in words if numbers[w.start] < round(config.mask_selection_rate * 2**31)]
    wanted = quota_of(config, sum(map(len, words)), int(real.sum()))
    if config.selection == "bernoulli":
        wanted = sum(map(len, words))
    left = min(wanted, limit)
    if config.unit == "whole_word":
        for word in words:
            if len(chosen) + len(word) > left:
                break
            chosen.update(word)
        words.sort(key=lambda word: word.start)
    turns(Drawn(jax.random.fold_in(select_key, 0)), words, chosen, left - len(chosen), config.unit)
    return sorted(chosen), wanted


@pytest.mark.parametrize(("unit", "quota", "selection"), UNITS)
@pytest.mark.parametrize(("length", "slots"), [(77, 11), pytest.param(64, 40, marks=pytest.mark.slow)])
def test_masks_match_the_loop(unit: str, quota: str, selection: str, length: int, slots: int) -> None:
    config = replace(CONFIG, unit=unit, quota=quota, selection=selection, mask_selection_length=slots)

    # Compiled once, because rates are inputs.
    @settings(max_examples=12)
    @given(st.sampled_from([0.0, 0.02, 0.15, 0.5, 1.0]), st.integers(0, 2**32 - 1))
    def check(rate: float, seed: int) -> None:
        changed = replace(config, mask_selection_rate=rate)
        ids, keys = rows_of(seed, ROWS, length), jax.random.split(jax.random.key(seed), ROWS)
        out, wanted = masked_and_counted(keys, ids, config, selection_table(changed, length))
        for row in range(ROWS):
            positions, asked = reference(keys[row], ids[row], changed)
            found = np.asarray(out.mask_positions[row])[np.asarray(out.mask_weights[row]) > 0]
            assert found.tolist() == positions
            assert wanted[row] == asked
            assert len(positions) <= min(asked, slots)
            # Only whole words, and no special token.
            words = words_in(ids[row], changed)
            assert set(positions) == {p for word in words if word.start in positions for p in word}
            unmasked = np.delete(np.arange(length), positions)
            np.testing.assert_array_equal(np.asarray(out.token_ids[row])[unmasked], ids[row][unmasked])

    check()


def sets_of(config: MaskingConfig, row: list[int], count: int) -> dict[tuple[int, ...], int]:
    out = masked(jax.random.key(3), np.tile(np.array(row, np.int32), (count, 1)), config)
    found: dict[tuple[int, ...], int] = {}
    for positions, weights in zip(*map(np.asarray, (out.mask_positions, out.mask_weights)), strict=True):
        chosen = tuple(positions[weights > 0].tolist())
        found[chosen] = found.get(chosen, 0) + 1
    return found


def test_whole_words_are_taken_in_random_order_while_they_fit() -> None:
    row, count = [CLS, 5, 6, 40, 7, 40, 41, 8, 42, SEP], 6000
    config = replace(CONFIG, unit="whole_word", mask_selection_rate=0.5)
    words, budget = words_in(np.array(row), config), 4
    expected: dict[tuple[int, ...], float] = {}
    for order in permutations(words):
        chosen: list[int] = []
        for word in order:
            chosen += word if len(chosen) + len(word) <= budget else []
        name = tuple(sorted(chosen))
        expected[name] = expected.get(name, 0) + count / 24
    found = sets_of(config, row, count)
    assert found.keys() == expected.keys()
    assert len(expected) > 3
    assert stats.chisquare([found[name] for name in expected], list(expected.values())).pvalue > 1e-4


def test_spans_start_uniformly_and_have_geometric_lengths() -> None:
    # With 12 of 2,000 tokens, spans hardly ever touch, and only the last span of a row is cut.
    ids = np.tile(np.arange(2000, dtype=np.int32) % 30 + 5, (1000, 1))
    config = replace(CONFIG, unit="span", mask_selection_rate=0.006, mask_selection_length=12)
    out = masked(jax.random.key(5), ids, config)
    positions = np.asarray(out.mask_positions)
    assert np.asarray(out.mask_weights).all()
    chances = np.array([0.2 * 0.8**n for n in range(10)]) / (1 - 0.8**10)
    assert (chances * np.arange(1, 11)).sum() == pytest.approx(3.8, abs=0.01)
    # of[n][left] is the probability that n spans use up `left` tokens.
    of = np.zeros((13, 13))
    of[0, 0] = 1
    for spans in range(1, 13):
        for left in range(1, 13):
            of[spans, left] = sum(chances[n - 1] * of[spans - 1, left - min(n, left)] for n in range(1, 11))
    runs = 1 + (np.diff(positions, axis=1) > 1).sum(1)
    found, expected = np.bincount(runs, minlength=13), of[:, 12] * len(runs)
    groups = [slice(0, 3), slice(3, 4), slice(4, 5), slice(5, 6), slice(6, 13)]
    chi = stats.chisquare([found[g].sum() for g in groups], [expected[g].sum() for g in groups])
    assert chi.pvalue > 1e-4
    # Every tenth of the row is masked equally often.
    in_tenths = np.bincount(positions.ravel() // 200, minlength=10)
    assert abs(in_tenths - 1200).max() < 6 * np.sqrt(1200 * 5)


@pytest.mark.parametrize("selection", ["ceil", "bert"])
def test_each_document_gets_its_quota(selection: str) -> None:
    ids = np.array([[CLS, 5, 6, 7, SEP, *range(5, 25), SEP, 8, SEP, PAD, PAD]], np.int32)
    config = replace(CONFIG, quota="document", selection=selection, mask_selection_length=9)
    for seed in range(10):
        keys = example_keys(seed, 0, np.arange(1))
        out, wanted = masked_and_counted(keys, ids, config)
        positions = out.mask_positions[0]
        chosen = np.asarray(positions)[np.asarray(positions) > 0]
        counts = [((chosen > low) & (chosen < high)).sum() for low, high in ((0, 4), (4, 25), (25, 27))]
        assert counts == [1, 3, 1]
        assert wanted[0] == 5
        # The quotas of the last documents are cut.
        cut = np.asarray(masked(keys, ids, replace(config, mask_selection_length=3)).mask_positions[0])
        assert [((cut > low) & (cut < high)).sum() for low, high in ((0, 4), (4, 25), (25, 27))] == [1, 2, 0]


@pytest.mark.parametrize(
    ("unit", "quota"),
    [
        pytest.param("whole_word", "row", marks=pytest.mark.slow),
        pytest.param("span", "row", marks=pytest.mark.slow),
        ("span", "document"),
    ],
)
def test_a_mask_depends_only_on_its_example(unit: str, quota: str) -> None:
    config = replace(CONFIG, unit=unit, quota=quota, mask_selection_length=12)
    ids = rows_of(4, 64, 48)
    whole = masked(example_keys(5, 2, np.arange(64)), ids, config)
    order = np.random.default_rng(0).permutation(64)[:17]
    assert_same(
        masked(example_keys(5, 2, order), ids[order], config), jax.tree.map(lambda x: x[order], whole)
    )
    one = mask_tokens(example_keys(5, 2, np.array([9]))[0], ids[9], config)
    assert_same(one, jax.tree.map(lambda x: x[9], whole))
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    for spec in (PartitionSpec(("a", "b")), PartitionSpec("a", "b")):
        sharded = jax.device_put(ids, NamedSharding(mesh, spec))
        assert_same(masked(example_keys(5, 2, np.arange(64)), sharded, config), whole)


def test_words_are_masked_whole_with_another_generator() -> None:
    ids = rows_of(6, 4, 40)
    config = replace(CONFIG, unit="whole_word")
    out = mask_tokens(jax.random.split(jax.random.key(1, impl="rbg"), 4), ids, config)
    assert out.mask_weights.sum() > 4
    for row, positions in zip(ids, np.asarray(out.mask_positions), strict=True):
        chosen = set(positions.tolist()) - {0}
        assert chosen == {p for word in words_in(row, config) if word.start in chosen for p in word}


@pytest.mark.parametrize(("unit", "quota"), [("whole_word", "row"), ("span", "document")])
def test_words_may_come_with_the_rows(unit: str, quota: str) -> None:
    config = replace(CONFIG, unit=unit, quota=quota)
    ids, keys = rows_of(3, ROWS, 40), example_keys(0, 0, np.arange(ROWS))
    words = np.isin(ids, config.continuation_token_ids)
    # What special tokens and those after them have makes no difference.
    words |= np.isin(ids, config.unselectable_token_ids)
    words[:, 1] = True
    from_data = replace(config, continuation_token_ids=(), words_from_data=True)
    out = jax.jit(mask_tokens, static_argnums=2)(keys, ids, from_data, continues_word=words)
    assert_same(out, masked(keys, ids, config))
    one = mask_tokens(keys[0], ids[0], from_data, continues_word=words[0])
    assert_same(one, jax.tree.map(lambda x: x[0], out))
    for rule, told, message in (
        (from_data, None, "must be given"),
        (config, words, "must be None"),
        (from_data, words[:, 1:], r"shape \(8, 39\): must be \(8, 40\)"),
    ):
        with pytest.raises(ValueError, match=message):
            mask_tokens(keys, ids, rule, continues_word=told)


def test_a_vocabulary_without_continuations_has_words_of_one_token() -> None:
    ids = rows_of(8, 8, 40)
    config = replace(CONFIG, continuation_token_ids=())
    keys = example_keys(0, 0, np.arange(8))
    assert_same(masked(keys, ids, replace(config, unit="whole_word")), masked(keys, ids, config))


def test_unit_masks_are_pinned() -> None:
    """May change only in a release that states that earlier runs cannot be resumed."""
    ids = np.tile(np.arange(10, 42, dtype=np.int32), (2, 1))
    ids[:, 12] = SEP
    found = {}
    for unit, quota in (("whole_word", "row"), ("span", "row"), ("token", "document"), ("span", "document")):
        config = replace(CONFIG, unit=unit, quota=quota, mask_selection_rate=0.2)
        config = replace(config, continuation_token_ids=tuple(range(11, 50, 3)), mask_selection_length=8)
        out = masked(example_keys(0, 0, np.arange(2)), ids, config)
        found[unit, quota] = np.where(out.mask_weights, out.mask_positions, -1).tolist()
    assert found == PINNED


PINNED = {
    ("whole_word", "row"): [[0, 1, 5, 13, 14, 27, 28, -1], [6, 7, 9, 10, 17, 30, 31, -1]],
    ("span", "row"): [[13, 14, 15, 16, 17, 18, 19, -1], [3, 4, 5, 8, 18, 19, 20, -1]],
    ("token", "document"): [[4, 6, 7, 15, 18, 21, 30, -1], [0, 7, 11, 16, 20, 25, 30, -1]],
    ("span", "document"): [[5, 6, 7, 23, 24, 25, 26, -1], [0, 1, 2, 23, 29, 30, 31, -1]],
}


@pytest.mark.parametrize("unit", ["whole_word", "span"])
def test_real_words_are_masked_whole(unit: str, shared_data: Path) -> None:
    tokenizer = Tokenizer.load(shared_data / "vocab" / "bert-base-uncased")
    text = "Photosynthesis in cyanobacteria fixes carbon dioxide, e.g. in Prochlorococcus and Synechococcus. "
    body = tokenizer.encode(text * 4)[:94]
    row = np.array([tokenizer.cls_token_id, *body, tokenizer.sep_token_id], np.int32)
    config = resolve_masking(MaskingRecipe(unit=unit, mask_selection_rate=0.3), tokenizer, 96)
    out = masked(example_keys(0, 0, np.arange(16)), np.tile(row, (16, 1)), config)
    words = words_in(row, config)
    assert max(map(len, words)) > 4
    assert np.asarray(out.mask_weights).sum() == 16 * 29
    for positions in np.asarray(out.mask_positions).tolist():
        assert set(positions) == {p for word in words if word.start in positions for p in word}
        first = tokenizer.id_to_token(int(row[positions[0]]))
        assert not first.startswith("##")


TIMED = """
import sys, time
from dataclasses import asdict
from scripts.benchmark.ours.masking import prepare
from scripts.benchmark.step_work import StepWork

length = int(sys.argv[1])
work = asdict(StepWork("bert_base_en_uncased", 256, sequence_length=length, masked=-(-length * 15 // 100)))
rounds = {unit: prepare({"work": work, "batches": 8, "unit": unit})[0] for unit in ("token", "whole_word")}
best = dict.fromkeys(rounds, float("inf"))
for _ in range(20):
    for unit, take in rounds.items():
        start = time.perf_counter()
        take()
        best[unit] = min(best[unit], time.perf_counter() - start)
print(best["whole_word"] / best["token"])
"""


@pytest.mark.release
@pytest.mark.parametrize("length", [128, 512])
def test_whole_words_take_less_than_twice_as_long_as_tokens(length: int) -> None:
    """Compares the shortest of twenty rounds each, because other work on the machine only makes rounds longer."""
    timed = run_python(TIMED, length, optimised=True)
    assert timed.returncode == 0, timed.stderr
    assert 0.5 < float(timed.stdout) < 2
