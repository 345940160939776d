"""Counts of words and of tokens in a text, and the words that a tokenizer divides most expensively."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from mlm_jax.extension.kinds import Kind, kind_of, pieces_of, words_of
from mlm_jax.text.tokenizer import Tokenizer
from mlm_jax.vocabulary.wordpiece import batches

# A space that precedes a word belongs to it in byte-level BPE. No tokenizer here has a word that goes on after a space.
_CHUNK = re.compile(r" ?\S+")
_BATCH_CHARACTERS = 1 << 18


def count_chunks(documents: Iterable[str]) -> Counter[str]:
    """Returns the counts of what lies between spaces, each with the space before it."""
    counts: Counter[str] = Counter()
    for document in documents:
        counts.update(_CHUNK.findall(document))
    return counts


def count_words(chunks: Mapping[str, int], tokenizer: Tokenizer) -> Counter[str]:
    """Returns the counts of the words of a text that could be entries, given those of its chunks.

    Raises:
        InputError: the kind of tokenizer is not supported.
    """
    kind, counts = kind_of(tokenizer), Counter[str]()
    for chunk, count in chunks.items():
        for word in words_of(tokenizer, chunk):
            entry = kind.entry_of(word)
            if entry is not None:
                counts[entry] += count
    return counts


def count_tokens(chunks: Mapping[str, int], tokenizer: Tokenizer) -> np.ndarray:
    """Returns how often each entry occurs in a text, int64 `[vocabulary_size]`, given the counts of its chunks."""
    total = np.zeros(tokenizer.vocabulary_size, dtype=np.int64)
    for batch in batches(chunks, _BATCH_CHARACTERS):
        rows = tokenizer.encode_batch(batch)
        weights = np.repeat([chunks[chunk] for chunk in batch], [len(row) for row in rows])
        np.add.at(total, np.concatenate(rows), weights)
    return total


def costly_words(
    words: Mapping[str, int], tokenizer: Tokenizer, kind: Kind, *, min_count: int
) -> Iterator[str]:
    """Yields the words that are divided into known pieces, most costly first, then in the order of code points.

    The cost of a word is the number of tokens that it would save as an entry: its count × (pieces − 1). Words without a
    letter, such as numbers and rows of dashes, are left out, and so are those that occur less than `min_count` times.
    """
    costs = {}
    for word, count in words.items():
        if count >= min_count and tokenizer.token_to_id(word) is None:
            costs[word] = count * (len(pieces_of(tokenizer, word)) - 1)
    for word in sorted(costs, key=lambda word: (-costs[word], word)):
        found = kind.text_of(word)
        if costs[word] > 0 and found is not None and any(map(str.isalpha, found[0])):
            yield word
