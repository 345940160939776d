"""BERT's WordPiece, built with the `tokenizers` library, and training of its vocabulary.

The rules are those of google-research/bert, `tokenization.py`: clean the text, put spaces around Chinese
characters, lowercase and strip accents if the vocabulary is uncased, split at whitespace and punctuation,
then repeatedly take the longest piece that matches from the left.
"""

import sys
from collections import Counter
from collections.abc import Iterable, Sequence

import tokenizers
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.trainers import WordPieceTrainer

from mlm_jax.errors import InputError
from mlm_jax.text.progress import track

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONTINUATION_PREFIX = "##"

# Rarer characters become [UNK]: otherwise thousands of foreign characters in a web corpus would displace words.
# A text of less than a million characters keeps all of its characters.
_RAREST_CHARACTER_RATE = 1e-6


def bert_backend(
    vocabulary: Sequence[str],
    *,
    lowercase: bool,
    strip_accents: bool | None = None,
    chinese_characters: bool = True,
) -> tokenizers.Tokenizer:
    """Returns a tokenizer with BERT's rules; `strip_accents=None` strips accents if `lowercase` is true."""
    token_ids = {token: token_id for token_id, token in enumerate(vocabulary)}
    backend = tokenizers.Tokenizer(
        WordPiece(token_ids, unk_token="[UNK]", continuing_subword_prefix=CONTINUATION_PREFIX)
    )
    backend.add_special_tokens([token for token in SPECIAL_TOKENS if token in token_ids])
    backend.normalizer = BertNormalizer(
        lowercase=lowercase, strip_accents=strip_accents, handle_chinese_chars=chinese_characters
    )
    backend.pre_tokenizer = BertPreTokenizer()
    backend.decoder = WordPieceDecoder(prefix=CONTINUATION_PREFIX)
    return backend


def train_vocabulary(
    documents: Iterable[str], vocabulary_size: int, *, lowercase: bool, sample_characters: int
) -> list[str]:
    """Returns the vocabulary that `Tokenizer.train` describes, in the order of its ids."""
    room = (vocabulary_size - len(SPECIAL_TOKENS)) // 2
    if room < 1:
        raise InputError(f"vocabulary size {vocabulary_size}: expected at least {len(SPECIAL_TOKENS) + 2}")
    sample = _sample(documents, sample_characters)
    backend = bert_backend([], lowercase=lowercase)
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
        special_tokens=[*SPECIAL_TOKENS, *alphabet, *continuations],
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        continuing_subword_prefix=CONTINUATION_PREFIX,
        show_progress=sys.stderr.isatty(),
    )
    backend.train_from_iterator(sample, trainer=trainer)
    token_ids = backend.get_vocab(with_added_tokens=True)
    return sorted(token_ids, key=token_ids.__getitem__)


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


def _sample(documents: Iterable[str], characters: int) -> list[str]:
    """Returns documents spread evenly over the stream, with at most `characters` in total."""
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
