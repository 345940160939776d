"""Words of rows, from the text to the masks: as `word_ids` of the library tell for their documents."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from mlm_jax.config import DataConfig
from mlm_jax.config.batch_sizes import BatchSizes
from mlm_jax.config.masking import MaskingRecipe
from mlm_jax.data.batches import Rows, TrainingBatches, evaluation_batches
from mlm_jax.data.sources import resolve_masking
from mlm_jax.data.verification import verify_shards
from mlm_jax.errors import InputError
from mlm_jax.masking.masking import example_keys, mask_tokens
from mlm_jax.preparation.division import Part
from mlm_jax.preparation.merge import merge_parts
from mlm_jax.preparation.prepare import prepare
from mlm_jax.shards.token_store import TokenStore, open_shards
from mlm_jax.step.maskable import check_maskable
from mlm_jax.text.tokenizer import Tokenizer
from tests.masking.test_words import Word, reference
from tests.text.odd_texts import odd_texts
from tests.text.small_tokenizers import TEXTS, byte_level, characters, unigram, word_piece

LENGTH = 48
DOCUMENTS = [*odd_texts(40, seed=3), *TEXTS, "the lakes", "(aren't 1,000 3rd)", "singing  7ing\n\n (ing"] * 2
KINDS: dict[str, Callable[[Path], Tokenizer]] = {
    "byte-level": byte_level,
    "added spaces": lambda folder: byte_level(folder, added=("  ", "   ")),
    "Unigram": unigram,
    "WordPiece": word_piece,
    "characters": characters,
}


def word_keys(tokenizer: Tokenizer, separator: bool) -> list[tuple[int, int]]:
    """Returns document and word of each token of the stream of documents; separators are words of their own."""
    stream: list[tuple[int, int]] = []
    for document, text in enumerate(DOCUMENTS):
        encoding = tokenizer._text_backend.encode(text, add_special_tokens=False)
        stream += [(document, word) for word in encoding.word_ids]
        stream += [(document, -1)] if separator and encoding.ids else []
    return stream


def words_of_rows(rows: Rows, tokenizer: Tokenizer, separator: bool) -> list[list[Word]]:
    """Returns the words of each packed row: neighbors that are no special tokens and have the same key."""
    stream, width = word_keys(tokenizer, separator), LENGTH - 2
    found = []
    for number, row in enumerate(rows.read(np.arange(rows.num_rows))):
        keys = [None, *stream[number * width : (number + 1) * width]]
        words: list[Word] = []
        for place, key in enumerate(keys):
            if key is None or row[place] in tokenizer.special_token_ids:
                continue
            if words and words[-1].stop == place and keys[place - 1] == key:
                words[-1] = Word(words[-1].start, place + 1)
            else:
                words.append(Word(place, place + 1))
        found.append(words)
    return found


@pytest.mark.parametrize(
    ("name", "separator"),
    [
        pytest.param(
            name, separator, marks=() if (name, separator) == ("byte-level", "none") else pytest.mark.slow
        )
        for name in KINDS
        for separator in ("sep", "none")
    ],
)
def test_masks_are_those_of_the_words_that_the_library_tells(
    name: str, separator: str, tmp_path: Path
) -> None:
    tokenizer = KINDS[name](tmp_path)
    store = TokenStore.from_documents(DOCUMENTS, tokenizer, separator=separator)  # type: ignore[arg-type]
    rows = Rows(store, tokenizer, DataConfig(sequence_length=LENGTH))
    numbers = np.arange(rows.num_rows)
    words = words_of_rows(rows, tokenizer, separator == "sep")
    for unit in ("whole_word", "span"):
        recipe = MaskingRecipe(unit=unit, mask_selection_rate=0.3, selection="bert")
        config = resolve_masking(recipe, tokenizer, LENGTH)
        assert config.words_from_data == (not tokenizer.marks_words)
        told = rows.read_words(numbers) if config.words_from_data else None
        keys = example_keys(1, 0, numbers)
        out = jax.jit(mask_tokens, static_argnums=2)(keys, rows.read(numbers), config, continues_word=told)
        for row in numbers[:6]:
            expected, _ = reference(keys[row], rows.read(numbers[row : row + 1])[0], config, words[row])
            positions = np.asarray(out.mask_positions[row])[np.asarray(out.mask_weights[row]) > 0]
            assert positions.tolist() == expected


def test_words_are_stored_beside_the_tokens(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path / "tokenizer")
    (tmp_path / "texts").mkdir()
    for number in range(3):
        lines = [" ".join(text.split()) for text in DOCUMENTS[number::3]]
        (tmp_path / f"texts/{number}.txt").write_text("\n".join(lines))
    paths, settings = [str(tmp_path / "texts")], {"shard_tokens": 700}
    prepare(paths, tokenizer, tmp_path / "data", **settings)
    store = open_shards(tmp_path / "data")
    assert store.has_words
    assert len(store.shards) > 2
    sizes = [-(-shard.num_tokens // 8) for shard in store.shards]
    assert [path.stat().st_size for path in sorted((tmp_path / "data").glob("words-*.bin"))] == sizes
    rows = Rows(store, tokenizer, DataConfig(sequence_length=LENGTH, packing="document"))
    some = np.random.default_rng(0).permutation(rows.num_rows)[:30]
    told = rows.read_words(some)
    for row, continues in zip(rows.read(some), told, strict=True):
        text = tokenizer.decode([i for i in row if i not in tokenizer.special_token_ids])
        ids, expected = tokenizer.encode_words([text])[0]
        if row[1 : len(ids) + 1].tolist() == ids.tolist():
            np.testing.assert_array_equal(continues[2 : len(ids) + 1], expected[1:])
    # Without memory maps, and in parts that are merged, the same.
    unmapped = tuple(replace(shard, mapped=False) for shard in store.shards)
    again = Rows(
        replace(store, shards=unmapped), tokenizer, DataConfig(sequence_length=LENGTH, packing="document")
    )
    np.testing.assert_array_equal(again.read_words(some), told)
    for index in range(2):
        prepare(paths, tokenizer, tmp_path / "parts", part=Part(index, 2), **settings)
    merge_parts(tmp_path / "parts")
    assert open_shards(tmp_path / "parts").fingerprint == store.fingerprint
    verify_shards(tmp_path / "parts")
    file = next((tmp_path / "parts").glob("part-*/words-*.bin"))
    file.write_bytes(bytes([file.read_bytes()[0] ^ 2]) + file.read_bytes()[1:])
    with pytest.raises(InputError, match=r"words-0000\d\.bin: damaged: its sha256"):
        verify_shards(tmp_path / "parts")
    file.unlink()
    with pytest.raises(InputError, match=r"words-0000\d\.bin: missing"):
        open_shards(tmp_path / "parts")


def test_batches_have_words_only_if_masking_needs_them(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path)
    rows = Rows(
        TokenStore.from_documents(DOCUMENTS, tokenizer), tokenizer, DataConfig(sequence_length=LENGTH)
    )
    batches = TrainingBatches(rows, BatchSizes(4), seed=0, with_words=True)
    batch = batches.batch(1)
    np.testing.assert_array_equal(batch.continues_word, rows.read_words(batch.example_ids.astype(int)))
    assert replace(batches, with_words=False).batch(1).continues_word is None
    found = [
        b.continues_word for b in evaluation_batches(rows, 8, None, tokenizer.pad_token_id, with_words=True)
    ]
    assert {part.shape for part in found} == {(8, LENGTH)}
    np.testing.assert_array_equal(
        np.concatenate(found)[: rows.num_rows], rows.read_words(np.arange(rows.num_rows))
    )
    assert not np.concatenate(found)[rows.num_rows :].any()


def test_earlier_data_have_no_words(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path / "tokenizer")
    (tmp_path / "text.txt").write_text("\n".join(TEXTS))
    prepare([str(tmp_path / "text.txt")], tokenizer, tmp_path / "data")
    store = open_shards(tmp_path / "data")
    earlier = replace(store, shards=tuple(replace(shard, word_source=None) for shard in store.shards))
    rows = Rows(earlier, tokenizer, DataConfig(sequence_length=16))
    check_maskable(rows, resolve_masking(MaskingRecipe(), tokenizer, 16), "data.path")
    with pytest.raises(
        InputError, match=r"^data\.path: prepared by a version that did not store where the words"
    ):
        check_maskable(rows, resolve_masking(MaskingRecipe(unit="span"), tokenizer, 16), "data.path")
    with pytest.raises(InputError, match=r"^data: prepared by a version"):
        rows.read_words(np.arange(1))


def test_entries_that_tell_need_no_words(tmp_path: Path) -> None:
    tokenizer = word_piece(tmp_path / "tokenizer")
    (tmp_path / "text.txt").write_text("\n".join(TEXTS))
    prepare([str(tmp_path / "text.txt")], tokenizer, tmp_path / "data")
    assert not list((tmp_path / "data").glob("words-*"))
    (record,) = json.loads((tmp_path / "data/manifest.json").read_text())["shards"]
    assert "words_sha256" not in record
    assert not open_shards(tmp_path / "data").has_words
