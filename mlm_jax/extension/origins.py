"""Which entries of an old vocabulary the rows of a new one come from."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mlm_jax.extension.kinds import kind_of, pieces_of
from mlm_jax.extension.new_words import UNUSED, Extended
from mlm_jax.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Origins:
    """The origin of each row of a new embedding table."""

    kept: np.ndarray
    """Old row of each new row, int64 `[rows]`; -1 for rows that are made."""
    made: Mapping[int, tuple[int, ...]]
    """Old rows of the pieces of each new row that is made; empty if no piece is known."""


def origins_of_words(old: Tokenizer, extended: Extended, num_rows: int) -> Origins:
    """Returns the origins of a vocabulary with new words, for a model whose embedding table has `num_rows`."""
    made = {token_id: tuple(pieces_of(old, word)) for word, token_id in extended.token_ids.items()}
    rows = max(num_rows, extended.tokenizer.vocabulary_size)
    kept = np.arange(rows)
    kept[list(made)] = -1
    return Origins(kept, made)


def origins_of_tokenizer(where: str, old: Tokenizer, new: Tokenizer) -> Origins:
    """Returns the origins of the rows of another tokenizer.

    Special tokens keep their roles. An entry is kept if the old tokenizer has one of the same text that stands in the
    same place, after a space or not. Others are made of the pieces that the old tokenizer divides their text into.

    Raises:
        InputError: the kind of a tokenizer is not supported; for the new one, the message begins with `where`.
    """
    old_kind, new_kind = kind_of(old), kind_of(new, f"{where}: the tokenizer")
    kept = np.full(new.vocabulary_size, -1, dtype=np.int64)
    known = {old_kind.text_of(entry) or (entry, None): token_id for entry, token_id in _ordinary(old).items()}
    alone: dict[int, str] = {}
    made: dict[int, tuple[int, ...]] = dict.fromkeys(range(new.vocabulary_size), ())
    for entry, token_id in _ordinary(new).items():
        found = new_kind.text_of(entry)
        kept[token_id] = known.get(found or (entry, None), -1)
        if found is None or kept[token_id] >= 0 or UNUSED.fullmatch(entry):
            continue
        text, follows_space = found
        # After no space, a capital is that of the first word of a text more often than it is within a word.
        begins = follows_space or text[:1].isupper()
        made[token_id] = () if begins else tuple(old_kind.pieces_within(text))
        if not made[token_id]:
            alone[token_id] = old_kind.lead + text
    for token_id, row in zip(alone, old.encode_batch(list(alone.values())), strict=True):
        made[token_id] = tuple(row[row != old.unknown_token_id].tolist())
    old_ids, new_ids = old.backend.get_vocab(), new.backend.get_vocab()
    for name, old_name in zip(new.roles.names, old.roles.names, strict=True):
        kept[new_ids[name]] = old_ids[old_name]
    return Origins(kept, {token_id: ids for token_id, ids in made.items() if kept[token_id] < 0})


def _ordinary(tokenizer: Tokenizer) -> dict[str, int]:
    entries: dict[str, int] = tokenizer.backend.get_vocab(with_added_tokens=True)
    return {entry: i for entry, i in entries.items() if entry not in tokenizer.roles.names}
