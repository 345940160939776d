"""Changes of a model's vocabulary: a list of words, the costly words of a text, or another tokenizer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mlm_jax.errors import InputError
from mlm_jax.extension.kinds import kind_of
from mlm_jax.extension.new_words import Extended, extend, extend_with_costly
from mlm_jax.extension.origins import Origins, origins_of_tokenizer, origins_of_words
from mlm_jax.extension.rows import TokenCounts, with_padding_of, with_vocabulary
from mlm_jax.extension.word_counts import costly_words, count_tokens, count_words
from mlm_jax.formats.model_folder import StoredModel
from mlm_jax.text.tokenizer import Tokenizer

Chunks = Mapping[str, int]
"""A text, as the counts of what lies between spaces; see `count_chunks`."""


@dataclass(frozen=True)
class Change:
    """A model with another vocabulary."""

    model: StoredModel
    origins: Origins
    counts: TokenCounts | None
    """Counts in the text, if there is one."""
    num_reused: int = 0
    """Number of new words that took the place of an unused entry."""
    notes: list[str] = field(default_factory=list)
    """Notes for the user: words that are left out, and why."""


def add_words(where: str, model: StoredModel, listed: Sequence[str], chunks: Chunks | None = None) -> Change:
    """Returns the model with a list of words, whose output biases follow from their counts in a text, if given.

    Raises:
        InputError: no word is new or ids exceed what models support, and the message begins with `where`; or the kind
            of tokenizer is not supported.
    """
    extended, notes = extend(where, model.tokenizer, listed)
    return _with_words(model, extended, chunks, notes)


def add_costly_words(
    where: str, model: StoredModel, chunks: Chunks, *, num_tokens: int, min_count: int
) -> Change:
    """Returns the model with the `num_tokens` words of a text that its tokenizer divides most expensively.

    Raises:
        InputError: as `add_words` does.
    """
    kind = kind_of(model.tokenizer)
    words = costly_words(count_words(chunks, model.tokenizer), model.tokenizer, kind, min_count=min_count)
    extended = extend_with_costly(where, model.tokenizer, kind, words, num_tokens)
    found = len(extended.token_ids)
    few = f"only {found:,} words are divided and occur at least {min_count:,} times, of {num_tokens:,} wanted"
    return _with_words(model, extended, chunks, [few] if found < num_tokens else [])


def _with_words(model: StoredModel, extended: Extended, chunks: Chunks | None, notes: list[str]) -> Change:
    origins = origins_of_words(model.tokenizer, extended, model.config.vocabulary_size)
    counts = _counts(model.tokenizer, extended.tokenizer, chunks)
    changed = with_vocabulary(model, extended.tokenizer, origins, counts)
    notes = notes + _unknown(model.tokenizer, extended.tokenizer, counts)
    return Change(changed, origins, counts, extended.num_reused, notes)


def move(where: str, model: StoredModel, tokenizer: Tokenizer, chunks: Chunks | None = None) -> Change:
    """Returns the model with another tokenizer.

    Raises:
        InputError: the tokenizer is the model's own, or of a kind that is not supported, and the message begins with
            `where`; or the model's is of such a kind.
    """
    if tokenizer.fingerprint == model.tokenizer.fingerprint:
        raise InputError(f"{where}: is the tokenizer that the model has; must be another")
    origins = origins_of_tokenizer(where, model.tokenizer, tokenizer)
    counts = _counts(model.tokenizer, tokenizer, chunks)
    changed = with_vocabulary(with_padding_of(tokenizer, model), tokenizer, origins, counts)
    return Change(changed, origins, counts, notes=_unknown(model.tokenizer, tokenizer, counts))


def _counts(old: Tokenizer, new: Tokenizer, chunks: Chunks | None) -> TokenCounts | None:
    if not chunks:
        return None
    return TokenCounts(count_tokens(chunks, old), count_tokens(chunks, new))


def _unknown(old: Tokenizer, new: Tokenizer, counts: TokenCounts | None) -> list[str]:
    """Returns a note if a text has more unknown tokens than before.

    In WordPiece, the rest of a word that begins with a new entry may have no pieces.
    """
    if counts is None:
        return []
    before, after = counts.old[old.unknown_token_id], counts.new[new.unknown_token_id]
    return [f"{after:,} tokens of the text are unknown, {before:,} before"] if after > before else []
