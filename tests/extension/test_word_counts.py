"""Counts of words and tokens, and the words that cost most."""

import numpy as np

from mlm_jax.extension.kinds import kind_of
from mlm_jax.extension.word_counts import costly_words, count_chunks, count_tokens, count_words
from tests.extension.tokenizers_small import TEXT, byte_level, unigram, word_piece

DOCUMENTS = [*TEXT, "Sarcoma, sarcoma;  SARCOMA\n\tglioma glioma's\x0b sárcoma 12345 12345 lake-side"]


def test_counts_of_tokens_are_those_of_the_encoded_text() -> None:
    for tokenizer in (word_piece(), byte_level(), unigram()):
        total = np.zeros(tokenizer.vocabulary_size, dtype=np.int64)
        for document in DOCUMENTS:
            np.add.at(total, tokenizer.encode(document), 1)
        found = count_tokens(count_chunks(DOCUMENTS), tokenizer)
        # Spaces that belong to no word are not counted.
        blank = [i for i in range(len(total)) if not tokenizer.decode([i]).strip()]
        total[blank] = found[blank] = 0
        np.testing.assert_array_equal(found, total)
        assert found.dtype == np.int64


def test_words_are_counted_as_the_tokenizer_divides_the_text() -> None:
    words = count_words(count_chunks(DOCUMENTS), word_piece())
    assert (words["sarcoma"], words["glioma"], words["s"], words["side"], words["lake"]) == (4, 2, 1, 1, 4)
    words = count_words(count_chunks(["a lake (lake) lake's", "lake"]), byte_level())
    assert words == {"a": 1, "Ġlake": 2, "Ġ(": 1, "lake": 2, ")": 1, "'s": 1}
    # Punctuation belongs to a word of Unigram, but not to its entry; and not every word begins with one.
    words = count_words(count_chunks(["a lake (lake) lake's covid-19, 3", "lake"]), unigram())
    assert words == {"▁a": 1, "▁lake": 3, "▁covid": 1, "▁3": 1}


def test_the_cost_of_a_word_is_the_tokens_that_it_would_save() -> None:
    tokenizer = word_piece()
    kind = kind_of(tokenizer)
    words = {
        "sarcoma": 3,  # sar ##co ##ma: 6
        "lakes": 6,  # lake ##s: 6
        "glioblastoma": 2,  # five pieces: 8
        "sarma": 1,  # seldom
        "lake": 99,  # an entry
        "qqq": 99,  # unknown
        "12345": 99,  # no letter
        "b": 99,
    }
    found = [*costly_words(words, tokenizer, kind, min_count=2)]
    assert found == ["glioblastoma", "lakes", "sarcoma"]
    assert [*costly_words(words, tokenizer, kind, min_count=4)] == ["lakes"]


def test_rows_of_dashes_cost_much_and_are_no_words() -> None:
    tokenizer = byte_level()
    chunks = count_chunks(["a ------------------ 2026202620262026 glioma"] * 9)
    words = count_words(chunks, tokenizer)
    assert "Ġ------------------" in words
    assert [*costly_words(words, tokenizer, kind_of(tokenizer), min_count=1)] == ["Ġglioma"]
