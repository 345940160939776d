"""Adds words to a tokenizer: which words can be entries, which ids they get, and the tokenizer that has them."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

import tokenizers

from mlm_jax.errors import InputError
from mlm_jax.extension.kinds import Kind, kind_of, words_of
from mlm_jax.text.tokenizer import Tokenizer
from mlm_jax.vocabulary.unigram import WORD_MARK

UNUSED = re.compile(rf"\[unused\d+\]{WORD_MARK}?|<unused_?\d+>|madeupword\d+")
"""Entries that vocabularies keep free: BERT's and our own, those of SentencePiece vocabularies, and RoBERTa's."""


@dataclass(frozen=True)
class Extended:
    """A tokenizer with new words."""

    tokenizer: Tokenizer
    token_ids: Mapping[str, int]
    """Ids of the new entries."""
    num_reused: int
    """Number of them that took the place of an unused entry."""


@dataclass
class _LeftOut:
    """Words of a list that do not become entries, by the reason, with what is said of the first."""

    reasons: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, example: str) -> None:
        self.reasons.setdefault(reason, []).append(example)

    def notes(self) -> list[str]:
        return [
            f"left out {len(examples):,} {reason}, such as {examples[0]}"
            for reason, examples in self.reasons.items()
        ]


def extend(where: str, tokenizer: Tokenizer, listed: Sequence[str]) -> tuple[Extended, list[str]]:
    """Returns the tokenizer with the words of a list, and notes about those that are left out.

    A word becomes an entry as the tokenizer's normalizer writes it, in byte-level BPE and Unigram with the space before
    it. It is left out if it is an entry already, or if it is not one word to the tokenizer.

    Raises:
        InputError: no word is left or ids exceed what models support, and the message begins with `where`; or the kind
            of tokenizer is not supported.
    """
    kind, left_out = kind_of(tokenizer), _LeftOut()
    entries: dict[str, None] = {}
    for line in listed:
        words = words_of(tokenizer, kind.lead + line)
        if len(words) != 1:
            shown = f"{line!r} ({' '.join(words)})" if words else repr(line)
            left_out.add("that are not one word to this tokenizer", shown)
        elif tokenizer.token_to_id(words[0]) is not None:
            left_out.add("that are entries already", repr(line))
        elif words[0] in entries:
            left_out.add("that repeat another", repr(line))
        else:
            entries[words[0]] = None
    extended, never_found = _with_entries(where, tokenizer, kind, list(entries))
    for entry in never_found:
        left_out.add("that this tokenizer would never find", repr(entry))
    notes = left_out.notes()
    if extended is None:
        raise InputError(f"{where}: has no new word: {'; '.join(notes)}")
    return extended, notes


def extend_with_costly(
    where: str, tokenizer: Tokenizer, kind: Kind, words: Iterable[str], count: int
) -> Extended:
    """Returns the tokenizer with the first `count` of `words`, which are in the form of entries.

    Raises:
        InputError: as `extend` does.
    """
    wanted = list(islice(words, count))
    extended, _ = _with_entries(where, tokenizer, kind, wanted)
    if extended is None:
        raise InputError(f"{where}: has no word that is frequent enough and divided into pieces")
    return extended


def _with_entries(
    where: str, tokenizer: Tokenizer, kind: Kind, entries: Sequence[str]
) -> tuple[Extended | None, list[str]]:
    """Returns the tokenizer with the entries that it finds in text, None without any, and the other entries."""
    wanted, never_found = list(entries), list[str]()
    while wanted:
        extended = _insert(where, tokenizer, kind, wanted)
        texts = [_in_text(kind, entry) for entry in wanted]
        # A word may contain the name of a special token, which other libraries find first.
        rows = extended.tokenizer.encode_batch(texts, parse_special_tokens=True)
        ids = [extended.token_ids[entry] for entry in wanted]
        lost = [entry for entry, row, i in zip(wanted, rows, ids, strict=True) if row.tolist() != [i]]
        if not lost:
            return extended, never_found
        never_found += lost
        wanted = [entry for entry in wanted if entry not in set(lost)]
    return None, never_found


def _in_text(kind: Kind, entry: str) -> str:
    found = kind.text_of(entry)
    return entry if found is None else (kind.lead if found[1] else "") + found[0]


def _insert(where: str, tokenizer: Tokenizer, kind: Kind, entries: Sequence[str]) -> Extended:
    content = json.loads(tokenizer.backend.to_str())
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    unused = sorted(
        token_id
        for entry, token_id in tokenizer.backend.get_vocab(with_added_tokens=True).items()
        if entry not in added and UNUSED.fullmatch(entry)
    )
    replaced, first = unused[: len(entries)], tokenizer.vocabulary_size
    ids = [*replaced, *range(first, first + len(entries) - len(replaced))]
    token_ids = dict(zip(entries, ids, strict=True))
    kind.insert(content, added, token_ids)
    backend = tokenizers.Tokenizer.from_str(json.dumps(content))
    return Extended(Tokenizer(backend, where, tokenizer.roles), token_ids, len(replaced))
