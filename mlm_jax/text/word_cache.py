"""A cache of the words seen so far, which make up most of a text: faster than the library, which has none."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import tokenizers
from tokenizers import AddedToken
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from mlm_jax.text.byte_level_words import byte_lengths, word_starts
from mlm_jax.text.words import continuations, normalizer_steps, pre_tokenizer_steps
from mlm_jax.vocabulary.wordpiece import batches, pieces

# Longer texts are encoded in pieces. Encoding needs about 130 bytes per character in the library, and 15 for the
# list of words.
_PIECE_CHARACTERS = 1 << 16
# Size in characters at which the word cache is cleared: about 120 MB, or half a million English words.
_KNOWN_SIZE_LIMIT = 1 << 24
_KNOWN_WORD_OVERHEAD = 24
# A longer "word" is a Chinese sentence or not text at all; it is encoded separately.
_LONG_WORD = 32

# A space between visible characters; it goes with the word after it.
_SPACE = re.compile(r"(?<=\S)(?= \S)")
# Steps of normalization that change a text on both sides of such a space as if each side were alone.
_LOCAL_STEPS = {
    "ByteLevel": {"NFC", "NFD", "Lowercase"},
    "Metaspace": {"NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "StripAccents", "Lowercase"},
}

Encode = Callable[[Sequence[str]], list[bytes]]
"""Maps words to the int32 numbers of their tokens as bytes."""


class WordCache:
    """Encodes texts word by word, for a tokenizer whose tokens of a text are those of its words."""

    def __init__(self, cut: Callable[[str], list[str]], encode: Encode, *, cut_long_texts: bool) -> None:
        """Starts with an empty cache.

        Args:
            cut: cuts a text into words.
            encode: encodes words.
            cut_long_texts: True if a text may also be cut at any space, or anywhere if it has none for long.
        """
        self._cut, self._encode, self._cut_long_texts = cut, encode, cut_long_texts
        self._known: dict[str, bytes] = {}
        self._known_size = 0

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the int32 numbers of the tokens of each text."""
        if not self._cut_long_texts or all(len(text) <= _PIECE_CHARACTERS for text in texts):
            return self._encode_by_words(texts)
        return [
            np.concatenate([self._encode_by_words([piece])[0] for piece in pieces(text, _PIECE_CHARACTERS)])
            for text in texts
        ]

    def _encode_by_words(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encodes with a cache of the words seen so far, which make up most of a text.

        On 10 MB of Wikipedia, BERT's rules take half the CPU time of `encode_batch_fast` if the cache is empty (1.6 to
        2.3 times faster in 8 rounds, with one thread and with two), and a seventh once the words are known.
        """
        if self._known_size > _KNOWN_SIZE_LIMIT:
            # A new dictionary, because other threads may still read the old one.
            self._known, self._known_size = {}, 0
        known = self._known
        texts_words = [self._cut(text) for text in texts]
        new_words = set().union(*texts_words).difference(known)
        for batch in batches(new_words, _PIECE_CHARACTERS):
            known.update(zip(batch, self._encode(batch), strict=True))
        self._known_size += sum(map(len, new_words)) + _KNOWN_WORD_OVERHEAD * len(new_words)
        return [
            np.frombuffer(bytearray().join(map(known.__getitem__, words)), dtype=np.int32)
            for words in texts_words
        ]


def word_cache(backend: tokenizers.Tokenizer, replace: np.ndarray | None, *, words: bool) -> WordCache | None:
    """Returns an empty cache for a tokenizer, or None if the tokens of a text may depend on more than one word.

    Args:
        backend: the tokenizer; special tokens in a text are ordinary text.
        replace: int32 `[vocabulary_size]`: ids in place of those of the library; None keeps them.
        words: True encodes tokens as 2 · id, or 2 · id + 1 if they continue a word; False as ids.
    """
    added = [token for token in backend.get_added_tokens_decoder().values() if not token.special]
    if is_bert(backend):
        # One that is compared with normalized text may contain spaces that the normalizer puts there.
        if words or any(token.normalized or any(map(str.isspace, token.content)) for token in added):
            return None
        return WordCache(_bert_words, partial(_encode_ids, backend, replace), cut_long_texts=True)
    if not _is_cut_at_spaces(backend) or any(map(_may_cross_spaces, added)):
        return None
    lengths = byte_lengths(backend) if words else None
    if lengths is not None:
        encode = partial(_encode_bytes_with_words, backend, replace, lengths)
    else:
        encode = partial(_encode_with_words if words else _encode_ids, backend, replace)
    return WordCache(_SPACE.split, encode, cut_long_texts=False)


def is_bert(backend: tokenizers.Tokenizer) -> bool:
    """True if a text is divided into words by BERT's rules."""
    parts = (backend.normalizer, backend.pre_tokenizer)
    return isinstance(parts[0], BertNormalizer) and isinstance(parts[1], BertPreTokenizer)


def _bert_words(text: str) -> list[str]:
    # Other separators, such as tabs, stay inside a "word" and are left to the library.
    return text.replace("\n", " ").split(" ")


def _encode_ids(
    backend: tokenizers.Tokenizer, replace: np.ndarray | None, words: Sequence[str]
) -> list[bytes]:
    """Returns the ids of each word. One call for all words is faster than one call per word."""
    short = [word for word in words if len(word) <= _LONG_WORD]
    # encode() would hold the GIL, and encode_batch_fast() does not return the word of each token.
    (encoding,) = backend.encode_batch([short], is_pretokenized=True, add_special_tokens=False)
    ids = packed(encoding, replace, words=False)
    owners = np.asarray(encoding.word_ids, dtype=np.int64)
    known = dict(zip(short, _divided(ids, owners, len(short)), strict=True))
    long = [word for word in words if len(word) > _LONG_WORD]
    encodings = backend.encode_batch_fast(long, add_special_tokens=False)
    known |= {
        word: packed(own, replace, words=False).tobytes() for word, own in zip(long, encodings, strict=True)
    }
    return [known[word] for word in words]


def _divided(numbers: np.ndarray, parts: np.ndarray, num_parts: int) -> list[bytes]:
    """Returns the int32 numbers of each part as bytes; `parts` are the parts of the numbers, ascending."""
    data = numbers.tobytes()
    ends = np.cumsum(np.bincount(parts, minlength=num_parts) * np.dtype(np.int32).itemsize).tolist()
    return [data[start:end] for start, end in pairwise([0, *ends])]


def _is_cut_at_spaces(backend: tokenizers.Tokenizer) -> bool:
    """True if a space between visible characters begins a part, whatever the rest of the text is.

    The expression of byte-level BPE looks ahead only at the end of a run of spaces, and a word takes the last space
    before it. Unigram is first split at spaces, and each word is marked.
    """
    steps = pre_tokenizer_steps(backend)
    kinds, last = [step["type"] for step in steps], (steps or [{}])[-1]
    if kinds == ["ByteLevel"]:
        known = bool(last["use_regex"])
    else:
        known = kinds == ["WhitespaceSplit", "Metaspace"] and (last["prepend_scheme"], last["split"]) == (
            "always",
            True,
        )
    return known and all(_is_local(step, kinds[-1]) for step in normalizer_steps(backend))


def _is_local(step: dict, pre_tokenizer: str) -> bool:
    if step["type"] == "Replace":
        return not any(map(str.isspace, step["pattern"].get("String", " ")))
    return step["type"] in _LOCAL_STEPS[pre_tokenizer]


def _may_cross_spaces(token: AddedToken) -> bool:
    """True if an added token may be found, or not, because of what lies on both sides of a space."""
    return token.lstrip or token.rstrip or token.single_word or bool(re.search(r"\S\s", token.content))


def _encode_with_words(
    backend: tokenizers.Tokenizer, replace: np.ndarray | None, words: Sequence[str]
) -> list[bytes]:
    """Returns the numbers of the tokens of each word, which has the space before it; see `word_cache`.

    A text of all words is cut at the same places, and is encoded faster than each of them.
    """
    inner, outer = _inner_and_outer(words)
    encodings = backend.encode_batch([*outer, "".join(inner)], add_special_tokens=False)
    numbers = [packed(encoding, replace, words=True) for encoding in encodings]
    known = {word: own.tobytes() for word, own in zip(outer, numbers, strict=False)}
    starts = np.cumsum([0, *map(len, inner)])
    offsets = np.asarray(encodings[-1].offsets, dtype=np.int64).reshape(-1, 2)[:, 0]
    parts = np.searchsorted(starts, offsets, side="right") - 1
    known |= zip(inner, _divided(numbers[-1], parts, len(inner)), strict=True)
    return [known[word] for word in words]


def _encode_bytes_with_words(
    backend: tokenizers.Tokenizer, replace: np.ndarray | None, lengths: np.ndarray, words: Sequence[str]
) -> list[bytes]:
    """Like `_encode_with_words`, but faster, for byte-level BPE with entries of these `lengths`."""
    inner, outer = _inner_and_outer(words)
    encodings = backend.encode_batch_fast([*outer, "".join(inner)], add_special_tokens=False)
    ids = np.concatenate([np.asarray(encoding.ids, np.int32) for encoding in encodings])
    ordered = [*outer, *inner]
    # The normalizer treats each word as it does the whole text; see `_is_local`.
    normal = ordered if backend.normalizer is None else [*map(backend.normalizer.normalize_str, ordered)]
    (begins, first_bytes), ends = word_starts(normal), np.cumsum(lengths[ids])
    assert len(begins) == (ends[-1] if len(ends) else 0), "entries stand for the bytes of the text"
    starts = ends - lengths[ids]
    numbers = (ids if replace is None else replace[ids]) * 2 + ~begins[starts]
    parts = np.searchsorted(first_bytes, starts, side="right") - 1
    known = dict(zip(ordered, _divided(numbers, parts, len(ordered)), strict=True))
    return [known[word] for word in words]


def _inner_and_outer(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns words with a space before them and none after, which a text of them has, too; and other words."""
    inner = [word for word in words if word[:1] == " " and not word[-1].isspace()]
    return inner, [word for word in words if word[:1] != " " or word[-1].isspace()]


def packed(encoding: tokenizers.Encoding, replace: np.ndarray | None, words: bool) -> np.ndarray:
    """Returns the int32 numbers of the tokens of an encoding; see `word_cache`."""
    ids = np.asarray(encoding.ids, dtype=np.int32)
    ids = ids if replace is None else replace[ids]
    return ids * 2 + continuations(encoding) if words else ids
