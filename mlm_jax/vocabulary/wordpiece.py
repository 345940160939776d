"""BERT's WordPiece, built with the `tokenizers` library, and training of its vocabulary.

The rules are those of google-research/bert, `tokenization.py`: clean the text, put spaces around Chinese
characters, lowercase and strip accents if the vocabulary is uncased, split at whitespace and punctuation,
then repeatedly take the longest piece that matches from the left.
"""

import sys
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import tokenizers
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.trainers import WordPieceTrainer

from mlm_jax.corpus.progress import track
from mlm_jax.errors import InputError

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONTINUATION_PREFIX = "##"
WORD_LENGTH_LIMIT = 100
"""Default of `max_input_chars_per_word`: a longer word becomes [UNK]."""
LARGEST_VOCABULARY = 1 << 22
"""Number of entries that models support; see `mlm_jax.config.model`."""
LARGEST_UNKNOWN_SHARE = 0.01
"""Share of unknown tokens above which a warning is given."""
NUM_EXAMPLES = 5
"""Number of unknown words that a warning shows."""

# Rarer characters become [UNK]: otherwise thousands of foreign characters in a web corpus would displace words.
# A text of less than a million characters keeps all of its characters.
_RAREST_CHARACTER_RATE = 1e-6

# English Wikipedia has 0.1 %, German 1.5 %, Hindi 25 %.
_FEW_ACCENTS = 0.005
_CHECKED_CHARACTERS = 1_000_000
_EXAMPLE_CHARACTERS = 24


def bert_backend(
    token_ids: Mapping[str, int],
    *,
    lowercase: bool,
    strip_accents: bool | None = None,
    chinese_characters: bool = True,
    max_input_chars_per_word: int = WORD_LENGTH_LIMIT,
    unknown: str = "[UNK]",
    special_tokens: Sequence[str] = SPECIAL_TOKENS,
) -> tokenizers.Tokenizer:
    """Returns a tokenizer with BERT's rules.

    Args:
        token_ids: entries and their ids.
        lowercase: True lowercases texts.
        strip_accents: None strips accents if `lowercase` is true.
        chinese_characters: True makes each Chinese character a word.
        max_input_chars_per_word: a longer word is unknown.
        unknown: entry for unknown words.
        special_tokens: entries that never come from text; those that are absent are left out.
    """
    model = WordPiece(
        dict(token_ids),
        unk_token=unknown,
        continuing_subword_prefix=CONTINUATION_PREFIX,
        max_input_chars_per_word=max_input_chars_per_word,
    )
    backend = tokenizers.Tokenizer(model)
    backend.add_special_tokens([token for token in special_tokens if token in token_ids])
    backend.normalizer = BertNormalizer(
        lowercase=lowercase, strip_accents=strip_accents, handle_chinese_chars=chinese_characters
    )
    backend.pre_tokenizer = BertPreTokenizer()
    backend.decoder = WordPieceDecoder(prefix=CONTINUATION_PREFIX)
    return backend


def train_vocabulary(
    sample: Sequence[str],
    vocabulary_size: int,
    *,
    lowercase: bool,
    strip_accents: bool | None,
    first: Sequence[str] = SPECIAL_TOKENS,
) -> list[str]:
    """Returns the vocabulary that `Tokenizer.train` describes, in the order of its ids, which begins with `first`."""
    room = (vocabulary_size - len(first)) // 2
    if room < 1:
        raise InputError(f"vocabulary size {vocabulary_size}: expected at least {len(first) + 2}")
    backend = bert_backend({}, lowercase=lowercase, strip_accents=strip_accents)
    alphabet = _alphabet(sample, backend.normalizer, room)
    if not alphabet:
        raise InputError(
            "no text to train a tokenizer on; expected at least one document with a visible character"
        )
    # The library numbers continuation characters in the order of a randomly seeded hash map and breaks ties between
    # merges by these numbers. Listing every initial symbol makes the result depend only on the text.
    continuations = [CONTINUATION_PREFIX + c for c in alphabet if not _is_split_off(c, backend)]
    trainer = WordPieceTrainer(
        vocab_size=vocabulary_size,
        special_tokens=list(dict.fromkeys([*first, *alphabet, *continuations])),
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        continuing_subword_prefix=CONTINUATION_PREFIX,
        show_progress=sys.stderr.isatty(),
    )
    backend.train_from_iterator(sample, trainer=trainer)
    token_ids = backend.get_vocab(with_added_tokens=True)
    return sorted(token_ids, key=token_ids.__getitem__)


def checked_size(source: str, token_ids: Mapping[str, int]) -> int:
    """Returns the number of ids up to the largest one.

    Raises:
        InputError: it is too large, or two tokens have the same id. The message begins with `source`.
    """
    last = max(token_ids, key=token_ids.__getitem__)
    if token_ids[last] >= LARGEST_VOCABULARY:
        raise InputError(
            f"{source}: {last!r} has the id {token_ids[last]:,}: must be below {LARGEST_VOCABULARY:,}"
        )
    tokens = {token_id: token for token, token_id in token_ids.items()}
    for token, token_id in token_ids.items() if len(tokens) < len(token_ids) else ():
        if tokens[token_id] != token:
            raise InputError(
                f"{source}: {token!r} and {tokens[token_id]!r} have the same id, {token_id}: must be different"
            )
    return token_ids[last] + 1


def check_texts(texts: object, name: str) -> None:
    """Raises InputError, which calls the texts `name`, if they are a single one, or no list or other iterable."""
    if isinstance(texts, str | bytes | Mapping) or not hasattr(texts, "__iter__"):
        found = "one string" if isinstance(texts, str) else type(texts).__name__
        raise InputError(f"{name}: expected a list of strings, found {found}")


def check_text(text: object, name: str) -> None:
    """Raises InputError, which calls the text `name`, if it is not a string or has a lone surrogate."""
    if not isinstance(text, str):
        raise InputError(f"{name}: expected a string, found {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name}: lone surrogate at character {error.start}; expected Unicode text"
        ) from error


def sample_documents(documents: Iterable[str], characters: int) -> list[str]:
    """Returns documents spread evenly over the stream, with at most `characters` in total.

    Raises:
        InputError: `characters` is below 1, or the documents are not strings.
    """
    check_texts(documents, "documents")
    # Otherwise, no sample would ever be small enough.
    if type(characters) is not int or characters < 1:
        raise InputError(f"sample_characters {characters!r}: expected a whole number, at least 1")
    sample: list[str] = []
    total, stride = 0, 1
    for index, document in enumerate(track(documents, "read", "documents")):
        if index % stride:
            continue
        check_text(document, f"document {index}")
        sample.append(document[:characters])
        total += len(sample[-1])
        while total > characters:
            sample, stride = sample[::2], stride * 2
            total = sum(map(len, sample))
    return sample


def decide_accents(sample: Sequence[str], *, lowercase: bool, strip_accents: bool | None) -> bool | None:
    """Returns `strip_accents` for BERT's rules, and warns if marks are many; see `Tokenizer.train`."""
    if strip_accents is False or (strip_accents is None and not lowercase):
        return strip_accents
    counts: Counter[str] = Counter()
    for document in thinned(sample):
        counts.update(document)
    visible = sum(count for character, count in counts.items() if not character.isspace())
    changed = {
        character: count
        for character, count in counts.items()
        if not character.isascii() and _without_marks(character) != character
    }
    share = sum(changed.values()) / max(visible, 1)
    if share <= _FEW_ACCENTS:
        return strip_accents
    examples = ", ".join(sorted(changed, key=lambda character: (-changed[character], character))[:5])
    if strip_accents:
        warnings.warn(
            f"strip_accents: changes or removes {share:.1%} of the characters ({examples})", stacklevel=3
        )
        return True
    warnings.warn(
        f"accents are kept: removing them would change or remove {share:.1%} of the characters ({examples}); "
        "set strip_accents (--strip-accents or --no-strip-accents) to choose",
        stacklevel=3,
    )
    return False


def thinned(sample: Sequence[str]) -> list[str]:
    """Returns about a million characters of `sample`, spread evenly over it, for checks."""
    stride = max(1, sum(map(len, sample)) // _CHECKED_CHARACTERS)
    return [document[:_CHECKED_CHARACTERS] for document in sample[::stride]]


def unknown_warning(share: float, words: Sequence[str], word_length_limit: int) -> str | None:
    """Returns a warning if more than 1 % of the tokens are unknown, with examples of `words`."""
    if share <= LARGEST_UNKNOWN_SHARE:
        return None
    examples = ", ".join(repr(_shortened(word)) for word in words)
    if any(len(word) > word_length_limit for word in words):
        hint = (
            f"words of more than {word_length_limit} characters are unknown: train the tokenizer with a larger "
            "--max-input-chars-per-word"
        )
    else:
        hint = "a model learns nothing from them, so check that the tokenizer is meant for this text"
    return f"{share:.1%} of the tokens are unknown ([UNK]){examples and f', such as {examples}'}; {hint}"


def _shortened(word: str) -> str:
    if len(word) <= _EXAMPLE_CHARACTERS:
        return word
    return f"{word[:_EXAMPLE_CHARACTERS]}… ({len(word):,} characters)"


def _without_marks(character: str) -> str:
    return "".join(c for c in unicodedata.normalize("NFD", character) if unicodedata.category(c) != "Mn")


def _alphabet(documents: Iterable[str], normalizer: BertNormalizer, limit: int) -> list[str]:
    """Returns the `limit` most frequent characters, except very rare ones, in code point order."""
    counts: Counter[str] = Counter()
    for document in track(documents, "count characters", "documents"):
        counts.update(normalizer.normalize_str(document))
    floor = counts.total() * _RAREST_CHARACTER_RATE
    common = [character for character in counts if not character.isspace() and counts[character] >= floor]
    return sorted(sorted(common, key=lambda character: (-counts[character], character))[:limit])


def _is_split_off(character: str, backend: tokenizers.Tokenizer) -> bool:
    """True if words are split around `character`, as around punctuation and Chinese characters."""
    text = backend.normalizer.normalize_str(f"a{character}")
    return len(backend.pre_tokenizer.pre_tokenize_str(text)) > 1


def pieces(text: str, most_characters: int) -> Iterator[str]:
    """Divides `text` into pieces of at most `most_characters`, at a space or line end if there is one."""
    start = 0
    while len(text) - start > most_characters:
        limit = start + most_characters
        # Such a long text without either is Chinese, where each character is a word, or not text at all.
        space = max(text.rfind(" ", start + 1, limit), text.rfind("\n", start + 1, limit))
        end = limit if space < 0 else space
        yield text[start:end]
        start = end
    yield text[start:]


def batches(words: Iterable[str], most_characters: int) -> Iterator[list[str]]:
    """Divides `words` into lists of about `most_characters`."""
    batch: list[str] = []
    characters = 0
    for word in words:
        batch.append(word)
        characters += len(word)
        if characters > most_characters:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch
