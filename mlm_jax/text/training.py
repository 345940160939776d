"""Training of vocabularies of every kind. The same texts give the same tokenizer on every machine.

    wordpiece    BERT's words and pieces (`wordpiece.py`)
    byte-bpe     bytes and frequent merges of them, as in GPT-2 and RoBERTa: no text is unknown
    unigram      pieces of SentencePiece (Kudo 2018), which have probabilities
    characters   single characters, such as the residues of proteins
    k-mers       k characters at a time, such as 6 bases of DNA, without overlap

Ids begin with [PAD], [UNK], [CLS], [SEP] and [MASK], then the reserved entries, then the tokens of the user.
"""

import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from mlm_jax.errors import InputError, one_line
from mlm_jax.vocabulary.unigram import WORD_MARK
from mlm_jax.vocabulary.wordpiece import SPECIAL_TOKENS, WORD_LENGTH_LIMIT, bert_backend, train_vocabulary

Kind = Literal["wordpiece", "byte-bpe", "unigram", "characters", "k-mers"]

# Probabilities so small that the entries are never chosen for text.
_NEVER = -1e6


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of a vocabulary to train."""

    kind: Kind = "wordpiece"
    vocabulary_size: int = 8192
    """Maximum number of entries."""
    lowercase: bool = True
    strip_accents: bool | None = None
    """True removes accents; None as `lowercase`."""
    max_input_chars_per_word: int = WORD_LENGTH_LIMIT
    """Of WordPiece: a longer word is unknown."""
    reserved: int = 0
    """Number of entries [unused0], [unused1], … that no text has, for tokens that are added later."""
    user_tokens: tuple[str, ...] = ()
    """Tokens that are found in text before anything else."""
    k: int = 6
    """Number of characters of a k-mer."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise InputError(f"kind {self.kind!r}: expected {', '.join(get_args(Kind))}")
        for name in ("vocabulary_size", "max_input_chars_per_word", "reserved", "k"):
            if type(getattr(self, name)) is not int:
                raise InputError(f"{name} {getattr(self, name)!r}: expected a whole number")
        for name, least in (("max_input_chars_per_word", 1), ("reserved", 0), ("k", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} {getattr(self, name)}: expected at least {least}")
        for name, owner, default in (
            ("max_input_chars_per_word", "wordpiece", WORD_LENGTH_LIMIT),
            ("k", "k-mers", TrainingSettings.k),
        ):
            if self.kind != owner and getattr(self, name) != default:
                raise InputError(
                    f"{name} {getattr(self, name)}: has no effect on kind {self.kind!r}; expected kind {owner!r}"
                )
        repeated = [token for token, count in Counter(self.first_entries).items() if count > 1]
        if repeated:
            raise InputError(f"user token {repeated[0]!r}: is given twice, or has the name of another entry")
        for token in self.user_tokens:
            if not isinstance(token, str) or not token or token != token.strip() or not token.isprintable():
                raise InputError(f"user token {token!r}: expected visible text without spaces at its ends")
        if self.room < 1:
            raise InputError(
                f"vocabulary size {self.vocabulary_size}: expected at least {len(self.first_entries) + 2}"
            )

    @property
    def first_entries(self) -> list[str]:
        """Entries that are not learned, in the order of their ids."""
        # A word of Unigram has its mark only at its start; without the mark, text could have the entry.
        end = WORD_MARK if self.kind == "unigram" else ""
        return [
            *SPECIAL_TOKENS,
            *(f"[unused{number}]{end}" for number in range(self.reserved)),
            *self.user_tokens,
        ]

    @property
    def room(self) -> int:
        """Number of entries that can be learned."""
        return self.vocabulary_size - len(self.first_entries)

    @property
    def removes_accents(self) -> bool:
        """True if accents are removed."""
        return self.lowercase if self.strip_accents is None else self.strip_accents


def train_backend(sample: Sequence[str], settings: TrainingSettings) -> tokenizers.Tokenizer:
    """Returns a tokenizer trained on texts.

    Raises:
        InputError: the texts have nothing visible, the vocabulary has no room, or a package is missing.
    """
    if settings.user_tokens:
        # They are no text to learn from.
        found = re.compile("|".join(map(re.escape, sorted(settings.user_tokens, key=len, reverse=True))))
        sample = [found.sub(" ", text) for text in sample]
    if not any(text.strip() for text in sample):
        raise InputError(
            "no text to train a tokenizer on; expected at least one document with a visible character"
        )
    if settings.kind == "wordpiece":
        backend = _word_piece(sample, settings)
    elif settings.kind == "byte-bpe":
        backend = _byte_level(sample, settings)
    elif settings.kind == "unigram":
        backend = _unigram(sample, settings)
    else:
        backend = _fixed_length(sample, settings)
    mask_takes_space = settings.kind == "byte-bpe"
    backend.add_special_tokens(
        [*SPECIAL_TOKENS[:-1], AddedToken(SPECIAL_TOKENS[-1], lstrip=mask_takes_space)]
    )
    backend.add_tokens([AddedToken(token, normalized=False) for token in settings.user_tokens])
    return backend


def _word_piece(sample: Sequence[str], settings: TrainingSettings) -> tokenizers.Tokenizer:
    lowercase, strip_accents = settings.lowercase, settings.strip_accents
    vocabulary = train_vocabulary(
        sample,
        settings.vocabulary_size,
        lowercase=lowercase,
        strip_accents=strip_accents,
        first=settings.first_entries,
    )
    return bert_backend(
        _numbered(vocabulary),
        lowercase=lowercase,
        strip_accents=strip_accents,
        max_input_chars_per_word=settings.max_input_chars_per_word,
    )


def _byte_level(sample: Sequence[str], settings: TrainingSettings) -> tokenizers.Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if settings.room < len(alphabet):
        raise InputError(
            f"vocabulary size {settings.vocabulary_size}: expected at least "
            f"{len(settings.first_entries) + len(alphabet)}, room for every byte"
        )
    backend = tokenizers.Tokenizer(models.BPE())
    if steps := _normalization(settings, composed="NFC"):
        backend.normalizer = normalizers.Sequence(steps)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary_size,
        special_tokens=settings.first_entries,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    backend.train_from_iterator(sample, trainer)
    # A new model, because training adds all first entries as special tokens.
    trained = json.loads(backend.to_str())["model"]
    merges: list[Any] = [tuple(pair) for pair in trained["merges"]]
    backend = _with_model(backend, models.BPE(trained["vocab"], merges))
    backend.decoder = decoders.ByteLevel()
    return backend


def _unigram(sample: Sequence[str], settings: TrainingSettings) -> tokenizers.Tokenizer:
    normalizer = normalizers.Sequence([normalizers.Nmt(), *_normalization(settings, composed="NFKC")])
    try:
        import sentencepiece  # noqa: PLC0415
    except ImportError as error:
        raise InputError(
            "kind 'unigram' needs sentencepiece: pip install 'mlm-jax[sentencepiece]'"
        ) from error
    texts = (" ".join(normalizer.normalize_str(text).split()) for text in sample)
    model = io.BytesIO()
    try:
        # The trainer of the tokenizers library sums in an order that differs between processes.
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(text for text in texts if text),
            model_writer=model,
            vocab_size=settings.room + 1,
            hard_vocab_limit=False,
            normalization_rule_name="identity",
            bos_id=-1,
            eos_id=-1,
            max_sentence_length=1 << 30,
            num_threads=1,
            minloglevel=2,
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"vocabulary size {settings.vocabulary_size}: SentencePiece cannot train it: {one_line(error)}"
        ) from error
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    numbers = [number for number in range(processor.get_piece_size()) if not processor.is_unknown(number)]
    learned = [(processor.id_to_piece(number), processor.get_score(number)) for number in numbers]
    first = [(entry, _NEVER) for entry in settings.first_entries]
    # Without its mark as an entry, a word that begins with an unknown character would not begin with the mark.
    pieces = [*first, *([] if WORD_MARK in dict(learned) else [(WORD_MARK, -20.0)]), *learned]
    backend = tokenizers.Tokenizer(models.Unigram(pieces[: settings.vocabulary_size], unk_id=1))
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    return backend


def _fixed_length(sample: Sequence[str], settings: TrainingSettings) -> tokenizers.Tokenizer:
    """Makes entries of single characters or of k: the most frequent ones, in the order of their code points."""
    size = 1 if settings.kind == "characters" else settings.k
    steps = _normalization(settings, composed="NFC")
    normalizer = normalizers.Sequence(steps) if steps else None
    split = pre_tokenizers.Split(Regex(rf"\S{{1,{size}}}"), "isolated")
    counts: Counter[str] = Counter()
    for text in sample:
        words = (normalizer.normalize_str(text) if normalizer else text).split()
        counts.update(word[start : start + size] for word in words for start in range(0, len(word), size))
    frequent = sorted(counts, key=lambda entry: (-counts[entry], entry))
    entries = sorted(frequent[: settings.room])
    vocabulary = dict.fromkeys([*settings.first_entries, *entries])
    backend = tokenizers.Tokenizer(models.WordLevel(_numbered(list(vocabulary)), "[UNK]"))
    if normalizer:
        backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), split])
    return backend


def _normalization(settings: TrainingSettings, *, composed: str) -> list[Any]:
    steps: list[Any] = [getattr(normalizers, composed)()]
    if settings.removes_accents:
        steps = [getattr(normalizers, composed.removesuffix("C") + "D")(), normalizers.StripAccents()]
    return steps + ([normalizers.Lowercase()] if settings.lowercase else [])


def _with_model(backend: tokenizers.Tokenizer, model: Any) -> tokenizers.Tokenizer:
    """Returns a tokenizer with another model and without added tokens."""
    new = tokenizers.Tokenizer(model)
    new.pre_tokenizer = backend.pre_tokenizer
    if backend.normalizer is not None:
        new.normalizer = backend.normalizer
    return new


def _numbered(entries: Iterable[str]) -> dict[str, int]:
    return {entry: number for number, entry in enumerate(entries)}
