"""Words of byte-level BPE from ids and text alone: the library's `encode_batch_fast` tells no words, but is faster.

An entry stands for as many bytes as it has characters, so ids tell where each token begins. Where words begin follows
from the classes of the text's characters, as in the expression by which the pre-tokenizer cuts:

    's|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import tokenizers
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Split

_OTHER, _LETTER, _NUMBER, _SPACE, _UNKNOWN = range(5)
_CLASSES = {_LETTER: r"\p{L}+", _NUMBER: r"\p{N}+", _SPACE: r"\s+"}
_CONTRACTIONS = ("s", "t", "m", "d", "re", "ve", "ll")


def byte_lengths(backend: tokenizers.Tokenizer) -> np.ndarray | None:
    """Returns int64 `[vocabulary_size]`: the number of bytes of each entry; None if the rules above do not hold."""
    model, pre_tokenizer = backend.model, backend.pre_tokenizer
    if not isinstance(model, BPE) or not isinstance(pre_tokenizer, ByteLevel):
        return None
    if model.continuing_subword_prefix or model.end_of_word_suffix:
        return None
    if pre_tokenizer.add_prefix_space or not pre_tokenizer.use_regex:
        return None
    # A byte without an entry would be unknown, and added tokens are found before a text is cut.
    token_ids = backend.get_vocab(with_added_tokens=True)
    added = backend.get_added_tokens_decoder().values()
    if not {*ByteLevel.alphabet()} <= {*token_ids} or not all(token.special for token in added):
        return None
    lengths = np.zeros(max(token_ids.values()) + 1, np.int64)
    for entry, token_id in token_ids.items():
        lengths[token_id] = len(entry)
    return lengths


def word_starts(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the words of texts that follow each other in UTF-8.

    Returns:
        Bool `[num_bytes]`, True for the first byte of each word, and int64 `[num_texts + 1]`, the bytes at which texts
        begin, and the number of bytes.
    """
    joined, bounds = "".join(texts), np.cumsum([0, *map(len, texts)])
    data = np.frombuffer(joined.encode(), np.uint8)
    first_bytes = np.append(np.flatnonzero((data & 0xC0) != 0x80), len(data))
    starts = np.zeros(len(data), bool)
    starts[first_bytes[:-1][_starting_characters(joined, bounds)]] = True
    return starts, first_bytes[bounds]


def _starting_characters(joined: str, bounds: np.ndarray) -> np.ndarray:
    """Returns bool `[num_characters]`: True for the first character of each word; texts end at `bounds`."""
    characters = np.frombuffer(joined.encode("utf-32-le"), np.uint32)
    classes = _classes_of(characters)
    begins_text = np.zeros(len(joined) + 1, bool)
    begins_text[bounds] = True
    starts, is_space = begins_text[:-1].copy(), classes == _SPACE
    starts[1:] |= (classes[1:] != classes[:-1]) & (is_space[1:] | (characters[:-1] != ord(" ")))
    # The last whitespace before a word is a part of its own or, if it is a space, the beginning of the word.
    starts[:-1] |= is_space[:-1] & ~is_space[1:] & ~begins_text[1:-1]
    apostrophes = np.flatnonzero(starts & (characters == ord("'")))
    ends = bounds[np.searchsorted(bounds, apostrophes, side="right")]
    for apostrophe, end in zip(apostrophes.tolist(), ends.tolist(), strict=True):
        for ending in _CONTRACTIONS:
            if joined.startswith(ending, apostrophe + 1, end):
                starts[apostrophe + 1] = False
                starts[apostrophe + 1 + len(ending) : apostrophe + 2 + len(ending)] = True
    return starts


def _classes_of(characters: np.ndarray) -> np.ndarray:
    """Returns uint8 `[num_characters]`: the classes of code points, as the library's expressions see them."""
    table = _known_classes()
    classes = table[characters]
    if (classes != _UNKNOWN).all():
        return classes
    new = np.unique(characters[classes == _UNKNOWN])
    found = np.full(len(new), _OTHER, np.uint8)
    for number, pattern in _CLASSES.items():
        split = Split(tokenizers.Regex(pattern), "removed", invert=True)
        for _, (start, end) in split.pre_tokenize_str(new.tobytes().decode("utf-32-le")):
            found[start:end] = number
    # At once, because other threads read the table.
    table[new] = found
    return table[characters]


@cache
def _known_classes() -> np.ndarray:
    """Returns uint8 `[0x110000]`: the classes of the characters seen so far."""
    return np.full(0x110000, _UNKNOWN, np.uint8)
