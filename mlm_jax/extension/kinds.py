"""What depends on the kind of tokenizer: the text of an entry, its pieces within a word, and how it takes new words.

A word is what the tokenizer's model divides into pieces, as its normalizer and pre-tokenizer yield it: "lake" in
WordPiece, "Ġlake" in byte-level BPE and "▁lake" in Unigram for a lake after a space.
"""

import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import takewhile
from typing import Any, Protocol

from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE, Unigram, WordLevel, WordPiece
from tokenizers.pre_tokenizers import ByteLevel

from mlm_jax.errors import InputError
from mlm_jax.text.tokenizer import Tokenizer
from mlm_jax.vocabulary.unigram import WORD_MARK


class Kind(Protocol):
    """A kind of tokenizer."""

    lead: str
    """What precedes a word in running text and belongs to it."""

    def text_of(self, entry: str) -> tuple[str, bool] | None:
        """Returns the text of an entry, and True if a space precedes it in running text; None if it has no text."""

    def pieces_within(self, text: str) -> list[int]:
        """Returns the ids of the known pieces of a text that follows a letter, without those of the letter."""

    def entry_of(self, word: str) -> str | None:
        """Returns the part of a word of a text that could be an entry, None if there is none."""

    def insert(self, content: dict[str, Any], added: Mapping[str, int], token_ids: Mapping[str, int]) -> None:
        """Adds words to the content of a `tokenizer.json`, so that each is one token.

        `token_ids` are the ids of the words, which are new or those of entries that give way. `added` are those of the
        added tokens, which the library would otherwise number anew, behind the new entries.
        """


def kind_of(tokenizer: Tokenizer, name: str = "the model's tokenizer") -> Kind:
    """Returns the kind of a tokenizer. Raises InputError, which calls it `name`, if it is not supported."""
    backend = tokenizer.backend
    if isinstance(backend.model, WordPiece):
        return _WordPiece(tokenizer)
    if isinstance(backend.model, BPE) and isinstance(backend.decoder, ByteLevelDecoder):
        return _ByteLevel(tokenizer)
    if isinstance(backend.model, Unigram) and words_of(tokenizer, " x x") == [f"{WORD_MARK}x"] * 2:
        return _Unigram(tokenizer)
    # Of characters and k-mers, every text has an entry already, or is as long as none.
    known = {
        WordLevel: "WordLevel, of whole words, characters or k-mers",
        Unigram: "Unigram without marks of words",
    }
    found = known.get(type(backend.model), tokenizer.kind)
    raise InputError(f"{name} is {found}: must be WordPiece, byte-level BPE or Unigram for new entries")


def words_of(tokenizer: Tokenizer, text: str) -> list[str]:
    """Returns the words of a text."""
    backend = tokenizer.backend
    normalized = text if backend.normalizer is None else backend.normalizer.normalize_str(text)
    if backend.pre_tokenizer is None:
        return [normalized]
    return [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normalized)]


def pieces_of(tokenizer: Tokenizer, word: str) -> list[int]:
    """Returns the ids of the known pieces of a word; none if it is unknown."""
    ids = (token.id for token in tokenizer.backend.model.tokenize(word))
    return [token_id for token_id in ids if token_id != tokenizer.unknown_token_id]


class _WordPiece:
    """The pieces are the longest that match from the left, so an entry that is a whole word is always taken."""

    lead = ""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._prefix = str(tokenizer.backend.model.continuing_subword_prefix)

    def text_of(self, entry: str) -> tuple[str, bool] | None:
        text = entry[len(self._prefix) :] if self._continues(entry) else entry
        # Punctuation and Chinese characters are words of their own, whatever precedes them.
        stands_alone = len(words_of(self._tokenizer, f"x{text}")) > 1
        if self._continues(entry):
            return None if stands_alone else (text, False)
        return text, not stands_alone

    def _continues(self, entry: str) -> bool:
        return entry.startswith(self._prefix) and len(entry) > len(self._prefix)

    def pieces_within(self, text: str) -> list[int]:
        words = words_of(self._tokenizer, f"x{text}")
        # Only an unusual normalizer would change the letter.
        if not words or not words[0].startswith("x"):
            return []
        rest = words[0][1:]
        found = [token.id for token in self._within.tokenize(rest)] if rest else []
        found += [piece for word in words[1:] for piece in pieces_of(self._tokenizer, word)]
        return [token_id for token_id in found if token_id != self._tokenizer.unknown_token_id]

    @cached_property
    def _within(self) -> WordPiece:
        """WordPiece of the entries that continue a word, without their prefix."""
        model, prefix = self._tokenizer.backend.model, self._prefix
        entries = self._tokenizer.backend.get_vocab(with_added_tokens=False)
        inner = {entry[len(prefix) :]: i for entry, i in entries.items() if self._continues(entry)}
        return WordPiece(
            inner | {model.unk_token: self._tokenizer.unknown_token_id},
            unk_token=model.unk_token,
            continuing_subword_prefix="",
            max_input_chars_per_word=model.max_input_chars_per_word,
        )

    def entry_of(self, word: str) -> str | None:
        return word

    def insert(self, content: dict[str, Any], added: Mapping[str, int], token_ids: Mapping[str, int]) -> None:
        _update(content, added, token_ids)


class _ByteLevel:
    """The library looks a word up before it merges, if `ignore_merges` is set, as Llama 3 does.

    Merges for a new word would need an entry for each of its beginnings, and would divide other words with the same
    beginning anew.
    """

    lead = " "

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._bytes = ByteLevel(add_prefix_space=False)

    def text_of(self, entry: str) -> tuple[str, bool] | None:
        text = str(self._tokenizer.backend.decoder.decode([entry]))
        # Some entries are parts of a character.
        if "\ufffd" in text or not text.strip():
            return None
        return text.removeprefix(" "), text.startswith(" ")

    def pieces_within(self, text: str) -> list[int]:
        words = self._bytes.pre_tokenize_str(text)
        return [piece for word, _ in words for piece in pieces_of(self._tokenizer, word)]

    def entry_of(self, word: str) -> str | None:
        return word

    def insert(self, content: dict[str, Any], added: Mapping[str, int], token_ids: Mapping[str, int]) -> None:
        self._warn_of_words_without_merges()
        _update(content, added, token_ids)
        content["model"]["ignore_merges"] = True

    def _warn_of_words_without_merges(self) -> None:
        """Warns of entries that text never had, and has once words are looked up first."""
        old, lost = self._tokenizer, []
        for entry, token_id in old.backend.get_vocab(with_added_tokens=False).items():
            found = None if pieces_of(old, entry) == [token_id] else self.text_of(entry)
            if found is not None and words_of(old, (self.lead if found[1] else "") + found[0]) == [entry]:
                lost.append(entry)
        if lost:
            warnings.warn(
                f"{len(lost):,} of the tokenizer's entries, such as {min(lost)!r}, could not be found in text for want "
                "of merges; with new words, they are found",
                stacklevel=2,
            )


def _update(content: dict[str, Any], added: Mapping[str, int], token_ids: Mapping[str, int]) -> None:
    """Adds words to a vocabulary that is a mapping, in place of the entries with the same ids."""
    taken = set(token_ids.values())
    kept = {entry: i for entry, i in content["model"]["vocab"].items() if i not in taken}
    content["model"]["vocab"] = {**kept, **added, **token_ids}


class _Unigram:
    """The division with the largest sum of scores is taken.

    The score of a new word is the sum of those of its pieces and a margin for each boundary between them, so that it
    wins where its pieces stood, also at the beginning of a longer word, and nowhere else. Among the divisions that are
    old ones with pieces joined, the one with the fewest tokens wins.
    """

    lead = " "

    # More than rounding adds to a sum of scores, less than lies between two divisions of a text as a rule.
    _MARGIN = 1e-4
    # The library scores an unknown character so much less than its lowest piece.
    _UNKNOWN_PENALTY = 10.0

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def text_of(self, entry: str) -> tuple[str, bool] | None:
        text = entry.removeprefix(WORD_MARK).replace(WORD_MARK, " ")
        return (text, entry.startswith(WORD_MARK)) if text.strip() else None

    def pieces_within(self, text: str) -> list[int]:
        normalizer = self._tokenizer.backend.normalizer
        normalized = text if normalizer is None else normalizer.normalize_str(text)
        return [piece for part in normalized.split() for piece in pieces_of(self._tokenizer, part)]

    def entry_of(self, word: str) -> str | None:
        # Punctuation belongs to the words of Unigram: "▁(lake" and "▁lake," are one each.
        letters = "".join(
            takewhile(lambda character: unicodedata.category(character)[0] not in "PSZ", word[1:])
        )
        return word[0] + letters if letters else None

    def insert(self, content: dict[str, Any], added: Mapping[str, int], token_ids: Mapping[str, int]) -> None:
        pieces = [(str(piece), float(score)) for piece, score in content["model"]["vocab"]]
        scores = [score for _, score in pieces]
        unknown, numbered = min(scores) - self._UNKNOWN_PENALTY, dict(enumerate(pieces))
        for token, token_id in added.items():
            # Those that are no pieces yet are found before anything else, and never by their scores.
            numbered.setdefault(token_id, (token, self._sum(token, scores, unknown, -1.0)))
        for word, token_id in token_ids.items():
            numbered[token_id] = (word, self._sum(word, scores, unknown, self._MARGIN))
        content["model"]["vocab"] = [numbered[token_id] for token_id in sorted(numbered)]

    def _sum(self, text: str, scores: Sequence[float], unknown: float, margin: float) -> float:
        """Returns the sum of the scores of the pieces of a text, plus `margin` for each boundary between them."""
        parts: list[float] = []
        for token in self._tokenizer.backend.model.tokenize(text):
            known = token.id != self._tokenizer.unknown_token_id
            parts += [scores[token.id]] if known else [unknown] * len(token.value)
        return sum(parts) + margin * max(1, len(parts) - 1)
