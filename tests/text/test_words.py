"""Where words begin: the tokens of each part of the pre-tokenizer, told by `word_ids` of the library."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers, pre_tokenizers

from mlm_jax.errors import InputError
from mlm_jax.text.byte_level_words import byte_lengths, word_starts
from mlm_jax.text.tokenizer import Tokenizer
from tests.text.odd_texts import odd_texts, real_texts
from tests.text.small_tokenizers import TEXTS, byte_level, characters, unigram, word_piece

SPACES = tuple(" " * n for n in (2, 3, 4))
WHITESPACE = pre_tokenizers.WhitespaceSplit()
# How a tokenizer is made; True if an entry alone tells; True if words are cached.
KINDS: dict[str, tuple[Callable[[Path], Tokenizer], bool, bool]] = {
    "byte-level": (byte_level, False, True),
    "byte-level, prefix": (lambda folder: byte_level(folder, prefix=True), False, True),
    "byte-level, NFC and added spaces": (
        lambda folder: byte_level(folder, added=SPACES, normalizer=normalizers.NFC()),
        False,
        True,
    ),
    "byte-level, NFC and lowercase": (
        lambda folder: byte_level(
            folder, normalizer=normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        ),
        False,
        True,
    ),
    "byte-level, NFKC": (lambda folder: byte_level(folder, normalizer=normalizers.NFKC()), False, False),
    "byte-level, added words": (lambda folder: byte_level(folder, added=("New York",)), False, False),
    "byte-level, digits apart": (
        lambda folder: byte_level(
            folder,
            pre_tokenizer=pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Digits(individual_digits=True),
                    pre_tokenizers.ByteLevel(add_prefix_space=False),
                ]
            ),
        ),
        False,
        False,
    ),
    "byte-level, one word": (
        lambda folder: byte_level(
            folder, pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        ),
        False,
        False,
    ),
    "Unigram": (unigram, True, True),
    "Unigram, added": (lambda folder: unigram(folder, added=("[E1]", "Ġ")), True, True),
    "Unigram, added entry": (lambda folder: unigram(folder, added=("s",)), False, True),
    "Unigram, never": (lambda folder: unigram(folder, scheme="never"), False, False),
    "Unigram, first": (lambda folder: unigram(folder, scheme="first", added=("[E1]",)), False, False),
    "Unigram without splitting at spaces": (
        lambda folder: unigram(folder, pre_tokenizer=pre_tokenizers.Metaspace()),
        True,
        False,
    ),
    "WordPiece": (word_piece, True, True),
    "WordPiece, added": (lambda folder: word_piece(folder, added=("[E1]", "##x", "la")), True, False),
    "WordPiece, added continuation": (lambda folder: word_piece(folder, added=("##e",)), False, False),
    "WordPiece at spaces": (lambda folder: word_piece(folder, pre_tokenizer=WHITESPACE), False, False),
    "characters": (characters, True, False),
}


def assert_words_of_the_library(tokenizer: Tokenizer, texts: list[str]) -> None:
    """Compares ids and words, except that nothing is said of special tokens and of those after them."""
    encodings = tokenizer._text_backend.encode_batch(texts, add_special_tokens=False)
    special = np.array(tokenizer.special_token_ids)
    no_text = np.setdiff1d(special, [tokenizer.unknown_token_id])
    rows = zip(texts, encodings, tokenizer.encode_words(texts), tokenizer.encode_batch(texts), strict=True)
    for text, encoding, (ids, continues), alone in rows:
        expected = np.array(encoding.ids, np.int32)
        expected[np.isin(expected, no_text)] = tokenizer.unknown_token_id
        np.testing.assert_array_equal(ids, expected, text)
        np.testing.assert_array_equal(alone, expected, text)
        assert (ids.dtype, continues.dtype, continues.shape) == (np.int32, bool, ids.shape)
        words = np.array(encoding.word_ids, np.int64)
        known = ~np.isin(ids, special) & np.insert(~np.isin(ids, special), 0, False)[:-1]
        np.testing.assert_array_equal(continues[known], (words == np.roll(words, 1))[known], text)


@pytest.mark.parametrize("name", KINDS)
def test_words_are_the_parts_of_the_pre_tokenizer(name: str, tmp_path: Path) -> None:
    make, marks, is_cached = KINDS[name]
    tokenizer = make(tmp_path)
    assert (tokenizer.marks_words, tokenizer._word_cache is not None) == (marks, is_cached)
    texts = [
        *odd_texts(300, seed=len(name)),
        *TEXTS,
        "",
        " ",
        "the lakes ##x ##ex [E1]lakes[E1]",
        "New York newYork",
    ]
    assert_words_of_the_library(tokenizer, texts)
    # Once more, with a cache that knows the words.
    assert_words_of_the_library(tokenizer, texts[::-1])


@pytest.mark.parametrize(
    "name",
    [
        *("byte-level", "byte-level, NFC and lowercase", "byte-level, NFC and added spaces"),
        *("Unigram", "WordPiece"),
    ],
)
def test_words_of_any_text(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    tokenizer = KINDS[name][0](tmp_path_factory.mktemp("tokenizer"))
    alphabet = "aTheß7,'▁#é\u0301 \n\t\r\x1c\u00a0\u3000東😀"

    @given(st.lists(st.one_of(st.text(alphabet), st.text())))
    def check(texts: list[str]) -> None:
        assert_words_of_the_library(tokenizer, [text.encode("utf-8", "replace").decode() for text in texts])

    check()


@pytest.mark.parametrize(
    "name", ["tokenizers/roberta-base", "vocab/bert-base-cased", "tokenizers/dnabert-6mer"]
)
def test_words_of_real_text(name: str, shared_data: Path) -> None:
    assert_words_of_the_library(Tokenizer.load(shared_data / name), real_texts(shared_data, 400))


def test_bytes_tell_words_where_every_byte_has_an_entry(tmp_path: Path) -> None:
    told = [
        name
        for name, (make, _, _) in KINDS.items()
        if byte_lengths(make(tmp_path / name)._backend) is not None
    ]
    assert told == ["byte-level", "byte-level, NFC and lowercase", "byte-level, NFKC"]
    missing = byte_level(tmp_path / "missing")._backend
    settings = json.loads(missing.to_str())
    del settings["model"]["vocab"]["Ā"]
    assert byte_lengths(tokenizers.Tokenizer.from_str(json.dumps(settings))) is None
    lengths = byte_lengths(missing)
    assert lengths is not None
    for text in TEXTS:
        assert lengths[missing.encode(text, add_special_tokens=False).ids].sum() == len(text.encode())


def test_words_begin_where_the_expression_of_the_pre_tokenizer_says() -> None:
    # Also where a text ends in a space or in an apostrophe, which the next one does not continue.
    texts = ["It's 7 lakes", "a  ", "it' ", "s", "", "a\n b  c", "'", "s'll", "…! '", "é\u3000 x "]
    words = [
        ["It", "'s", " 7", " lakes"],
        ["a", "  "],
        ["it", "'", " "],
        ["s"],
        [],
        ["a", "\n", " b", " ", " c"],
        ["'"],
    ]
    words += [["s", "'ll"], ["…!", " '"], ["é", "\u3000", " x", " "]]
    starts, bounds = word_starts(texts)
    lengths = [len(word.encode()) for text in words for word in text]
    np.testing.assert_array_equal(np.flatnonzero(starts), np.cumsum([0, *lengths[:-1]]))
    np.testing.assert_array_equal(bounds, np.cumsum([0, *(len(text.encode()) for text in texts)]))


def test_texts_that_are_no_text_are_rejected_with_words(tmp_path: Path) -> None:
    tokenizer = byte_level(tmp_path)
    for text, message in (("a\ud800", "lone surrogate"), (3, "expected a string")):
        with pytest.raises(InputError, match=message):
            tokenizer.encode_words(["a", text])  # type: ignore[list-item]
        with pytest.raises(InputError, match=message):
            tokenizer.encode_batch(["a", text])  # type: ignore[list-item]


def test_the_text_of_an_entry_in_place_of_a_mask(tmp_path: Path) -> None:
    assert unigram(tmp_path).text_of("▁lake") == (" lake", True)
    assert unigram(tmp_path).text_of("s") == ("s", True)
    assert byte_level(tmp_path).text_of("Ġlake") == (" lake", False)
    assert json.loads((tmp_path / "tokenizer.json").read_text())["model"]["type"] == "BPE"
