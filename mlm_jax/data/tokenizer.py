"""WordPiece by the `tokenizers` library: load, train, encode; the special ids; which ids continue a word.

The rules are BERT's (google-research/bert, `tokenization.py`): clean the text, put spaces around Chinese
characters, lowercase and strip accents where the vocabulary is uncased, split at whitespace and punctuation,
then take the longest matching piece from the left.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np
import tokenizers
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.trainers import WordPieceTrainer

from mlm_jax.data.files import write_atomically
from mlm_jax.errors import InputError

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONTINUATION_PREFIX = "##"
TOKENIZER_FILE = "tokenizer.json"
VOCABULARY_FILE = "vocab.txt"

# A character rarer than this is left to [UNK]: in a web corpus thousands of foreign characters would
# otherwise take the place of words. In a text of less than a million characters every character is kept.
_RAREST_CHARACTER_RATE = 1e-6

# The library takes about 130 bytes a character while it encodes; this bounds it.
_BATCH_CHARACTERS = 1 << 16
# The table of words met before is begun anew at this size, in characters: about 120 MB, half a million
# English words.
_KNOWN_SIZE_LIMIT = 1 << 24
_KNOWN_WORD_OVERHEAD = 24
# Longer than this is no word but a Chinese sentence, or nothing that has words; it is encoded by itself.
_LONG_WORD = 32


class Tokenizer:
    """A BERT tokenizer: text to token ids without [CLS] and [SEP], and back."""

    def __init__(self, backend: tokenizers.Tokenizer, source: str) -> None:
        """Wrap `backend`; InputError, naming `source`, where one of the five special tokens is missing."""
        missing = [token for token in SPECIAL_TOKENS if backend.token_to_id(token) is None]
        if missing:
            raise InputError(
                f"{source}: no {' and no '.join(missing)} in the vocabulary; "
                f"a BERT vocabulary has {', '.join(SPECIAL_TOKENS)}"
            )
        # A published tokenizer.json may cut texts at 512 tokens or pad them.
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        self._backend = backend
        self._known: dict[str, bytes] = {}
        self._known_size = 0
        self._token_ids: dict[str, int] = backend.get_vocab(with_added_tokens=True)
        self.vocabulary_size = max(self._token_ids.values()) + 1
        self.pad_token_id, self.unknown_token_id, self.cls_token_id, self.sep_token_id, self.mask_token_id = (
            self._token_ids[token] for token in SPECIAL_TOKENS
        )
        self.special_token_ids = tuple(sorted(self._token_ids[token] for token in SPECIAL_TOKENS))

    @classmethod
    def load(cls, path: str | Path, *, lowercase: bool | None = None) -> Self:
        """Load a `tokenizer.json`, a BERT `vocab.txt`, or a folder that holds one, the first preferred.

        lowercase: for a `vocab.txt` only. None takes `do_lower_case` from a `tokenizer_config.json` beside
            it, and without one guesses: a vocabulary with an entry made of letters only, one of them
            uppercase, is cased. Lowercasing also strips accents, as in BERT.

        Raises InputError where there is no such file, it does not parse, or a special token is missing.
        """
        path = Path(path)
        if path.is_dir():
            candidates = (path / TOKENIZER_FILE, path / VOCABULARY_FILE)
            file = next((candidate for candidate in candidates if candidate.is_file()), None)
            if file is None:
                raise InputError(f"{path}: no tokenizer here; expected {TOKENIZER_FILE} or {VOCABULARY_FILE}")
            path = file
        if not path.is_file():
            raise InputError(
                f"{path}: no such file; expected {TOKENIZER_FILE}, {VOCABULARY_FILE} or a folder"
            )
        if path.suffix == ".json":
            return cls(_read_tokenizer_json(path), str(path))
        vocabulary = _read_vocabulary(path)
        options = _read_tokenizer_config(path.parent / "tokenizer_config.json")
        if lowercase is None:
            lowercase = options.get("do_lower_case")
        if lowercase is None:
            lowercase = not any(_is_cased(token) for token in vocabulary)
        backend = _bert_backend(
            vocabulary,
            lowercase=lowercase,
            strip_accents=options.get("strip_accents"),
            chinese_characters=options.get("tokenize_chinese_chars") is not False,
        )
        return cls(backend, str(path))

    @classmethod
    def train(
        cls,
        documents: Iterable[str],
        vocabulary_size: int,
        *,
        lowercase: bool = True,
        sample_characters: int = 50_000_000,
        show_progress: bool = False,
    ) -> Self:
        """Train WordPiece on `documents`; the same documents give the same vocabulary, whatever the machine.

        vocabulary_size: entries wanted; a small text gives fewer. Ids 0 to 4 are [PAD], [UNK], [CLS], [SEP],
            [MASK], then come the characters, as word starts and as continuations, then the learned pieces.
            Where there are more characters than fit, the rarest are left out.
        sample_characters: at most this many characters are learned from, in every second, fourth, … document
            where there are more. It bounds the memory: about 10 bytes a character for English.

        Raises InputError for a vocabulary too small for any character and for documents without text.
        """
        room = (vocabulary_size - len(SPECIAL_TOKENS)) // 2
        if room < 1:
            raise InputError(
                f"vocabulary size {vocabulary_size}: expected at least {len(SPECIAL_TOKENS) + 2}"
            )
        sample = _sample(documents, sample_characters)
        backend = _bert_backend([], lowercase=lowercase)
        alphabet = _alphabet(sample, backend.normalizer, room)
        if not alphabet:
            raise InputError(
                "no text to train a tokenizer on; expected at least one document with a visible character"
            )
        # The library numbers the continuation characters in the order of a randomly seeded hash map, and
        # breaks ties between merges by these numbers: naming every initial symbol makes the result a
        # function of the text.
        continuations = [CONTINUATION_PREFIX + c for c in alphabet if not _stands_alone(c, backend)]
        trainer = WordPieceTrainer(
            vocab_size=vocabulary_size,
            special_tokens=[*SPECIAL_TOKENS, *alphabet, *continuations],
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            continuing_subword_prefix=CONTINUATION_PREFIX,
            show_progress=show_progress,
        )
        backend.train_from_iterator(sample, trainer=trainer)
        vocabulary = backend.get_vocab(with_added_tokens=True)
        return cls(
            _bert_backend(sorted(vocabulary, key=vocabulary.__getitem__), lowercase=lowercase), "training"
        )

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json` and `vocab.txt` into `folder`, each whole or not at all."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        by_id = {token_id: token for token, token_id in self._token_ids.items()}
        entries = (by_id.get(token_id, f"[unused_id_{token_id}]") for token_id in range(self.vocabulary_size))
        write_atomically(folder / VOCABULARY_FILE, "".join(f"{entry}\n" for entry in entries).encode())
        write_atomically(folder / TOKENIZER_FILE, self._backend.to_str(pretty=True).encode())

    def encode(self, text: str, *, parse_special_tokens: bool = False) -> np.ndarray:
        """Return the int32 ids `[length]` of `text`, without [CLS] and [SEP].

        parse_special_tokens: False reads a literal "[MASK]" as the ordinary text it is; True as the token.
        """
        return self.encode_batch([text], parse_special_tokens=parse_special_tokens)[0]

    def encode_batch(self, texts: Sequence[str], *, parse_special_tokens: bool = False) -> list[np.ndarray]:
        """Return the int32 ids of each text; see `encode`. Other threads run while the library works.

        Raises InputError for a text that is no string or holds a lone surrogate.
        """
        try:
            if parse_special_tokens:
                encodings = self._prompt_backend.encode_batch(list(texts), add_special_tokens=False)
            elif self._splits_at_spaces:
                return self._encode_by_words(texts)
            else:
                encodings = self._backend.encode_batch(list(texts), add_special_tokens=False)
        except TypeError as error:
            raise InputError(_what_is_no_text(texts)) from error
        return [np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings]

    def _encode_by_words(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encode through a table of the words met before, which most of a text is: about twice as fast."""
        if self._known_size > _KNOWN_SIZE_LIMIT:
            # A new table, since other threads may be reading the old one.
            self._known, self._known_size = {}, 0
        known = self._known
        # Whatever else may part words, a tab for one, is left to the library inside a "word".
        texts_words = [text.replace("\n", " ").split(" ") for text in texts]
        new_words = set().union(*texts_words).difference(known)
        for batch in _batches(word for word in new_words if len(word) <= _LONG_WORD):
            known.update(zip(batch, self._encode_words(batch), strict=True))
        known.update((word, self._encode_long_word(word)) for word in new_words if len(word) > _LONG_WORD)
        self._known_size += sum(map(len, new_words)) + _KNOWN_WORD_OVERHEAD * len(new_words)
        return [
            np.frombuffer(bytearray().join(map(known.__getitem__, words)), dtype=np.int32)
            for words in texts_words
        ]

    def _encode_words(self, words: Sequence[str]) -> list[bytes]:
        """Return the ids of each word as the bytes of int32; one call for all is faster than one each."""
        # encode() would hold Python's lock, and encode_batch_fast() does not say which word a token is of.
        (encoding,) = self._backend.encode_batch([words], is_pretokenized=True, add_special_tokens=False)
        data = np.asarray(encoding.ids, dtype=np.int32).tobytes()
        lengths = np.bincount(np.asarray(encoding.word_ids, dtype=np.int64), minlength=len(words))
        ends = np.cumsum(lengths * np.dtype(np.int32).itemsize).tolist()
        return [data[start:end] for start, end in pairwise([0, *ends])]

    def _encode_long_word(self, word: str) -> bytes:
        """Return the ids of `word` as the bytes of int32; beyond `_BATCH_CHARACTERS` it is cut."""
        ids = []
        for start in range(0, len(word), _BATCH_CHARACTERS):
            piece = word[start : start + _BATCH_CHARACTERS]
            (encoding,) = self._backend.encode_batch_fast([piece], add_special_tokens=False)
            ids.append(np.asarray(encoding.ids, dtype=np.int32).tobytes())
        return b"".join(ids)

    def decode(self, token_ids: Sequence[int] | np.ndarray) -> str:
        """Return the text of `token_ids`: pieces joined into words, special tokens written out."""
        return self._backend.decode([int(token_id) for token_id in token_ids], skip_special_tokens=False)

    def id_to_token(self, token_id: int) -> str | None:
        """Return the vocabulary entry of `token_id`, or None where there is none."""
        return self._backend.id_to_token(token_id)

    def token_to_id(self, token: str) -> int | None:
        """Return the id of the vocabulary entry `token`, or None where there is none."""
        return self._token_ids.get(token)

    @cached_property
    def continues_word(self) -> np.ndarray:
        """Bool `[vocabulary_size]`: True where the entry continues a word ("##ing")."""
        table = np.zeros(self.vocabulary_size, dtype=bool)
        table[[i for token, i in self._token_ids.items() if token.startswith(CONTINUATION_PREFIX)]] = True
        return table

    @cached_property
    def fingerprint(self) -> str:
        """Sha256, in hexadecimal, over all that determines `encode`.

        It is the same for a `vocab.txt` and for the `tokenizer.json` saved from it, in any process.
        """
        settings = json.loads(self._backend.to_str())
        normalizer = settings["normalizer"]
        if normalizer and normalizer["type"] == "BertNormalizer" and normalizer["strip_accents"] is None:
            normalizer["strip_accents"] = normalizer["lowercase"]
        added = sorted(settings["added_tokens"], key=lambda token: token["id"])
        parts = [settings["model"], normalizer, settings["pre_tokenizer"], added]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @cached_property
    def _splits_at_spaces(self) -> bool:
        """Whether a text's ids are those of its space-separated words, which BERT's rules promise."""
        added = self._backend.get_added_tokens_decoder().values()
        return (
            isinstance(self._backend.normalizer, BertNormalizer)
            and isinstance(self._backend.pre_tokenizer, BertPreTokenizer)
            and all(token.special for token in added)
        )

    @cached_property
    def _prompt_backend(self) -> tokenizers.Tokenizer:
        # A second instance, since the setting belongs to the object, which other threads may be using.
        backend = tokenizers.Tokenizer.from_str(self._backend.to_str())
        backend.encode_special_tokens = False
        return backend


def _batches(words: Iterable[str]) -> Iterator[list[str]]:
    """Divide `words` into lists of about `_BATCH_CHARACTERS`."""
    batch: list[str] = []
    characters = 0
    for word in words:
        batch.append(word)
        characters += len(word)
        if characters > _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _what_is_no_text(texts: Sequence[object]) -> str:
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            return f"text {index}: expected a string, found {type(text).__name__}"
        try:
            text.encode()
        except UnicodeEncodeError as error:
            return f"text {index}: lone surrogate at character {error.start}; expected Unicode text"
    return "a text cannot be encoded"


def _bert_backend(
    vocabulary: Sequence[str],
    *,
    lowercase: bool,
    strip_accents: bool | None = None,
    chinese_characters: bool = True,
) -> tokenizers.Tokenizer:
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


def _read_tokenizer_json(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    # The library raises a bare Exception for whatever it cannot parse.
    except Exception as error:
        raise InputError(f"{path}: not a tokenizer.json: {' '.join(str(error).split())}") from error


def _read_vocabulary(path: Path) -> list[str]:
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: broken UTF-8 at byte {error.start}; expected one entry a line") from error
    # Only "\n" ends a line: published vocabularies hold entries such as U+2028, at which str.splitlines
    # would cut.
    entries = [line.removesuffix("\r") for line in text.split("\n")]
    while entries and not entries[-1]:
        entries.pop()
    if not entries:
        raise InputError(f"{path}: file is empty; expected one vocabulary entry a line")
    first_line: dict[str, int] = {}
    for line, entry in enumerate(entries, start=1):
        if first_line.setdefault(entry, line) != line:
            raise InputError(f"{path}:{line}: repeats the entry {entry!r} of line {first_line[entry]}")
    return entries


def _read_tokenizer_config(path: Path) -> dict[str, bool | None]:
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON: {error}") from error
    return config if isinstance(config, dict) else {}


def _is_cased(token: str) -> bool:
    # Only words tell: uncased vocabularies too hold entries such as [MASK] and <S>.
    word = token.removeprefix(CONTINUATION_PREFIX)
    return word.isalpha() and word != word.lower()


def _sample(documents: Iterable[str], characters: int) -> list[str]:
    """Return documents evenly spread over the stream, at most `characters` in total (a single longer one is
    cut)."""
    sample: list[str] = []
    total, stride = 0, 1
    for index, document in enumerate(documents):
        if index % stride:
            continue
        sample.append(document[:characters])
        total += len(sample[-1])
        while total > characters:
            sample, stride = sample[::2], stride * 2
            total = sum(map(len, sample))
    return sample


def _alphabet(documents: Iterable[str], normalizer: BertNormalizer, limit: int) -> list[str]:
    """Return the `limit` most frequent characters, without those that are very rare, in code point order."""
    counts: Counter[str] = Counter()
    for document in documents:
        counts.update(normalizer.normalize_str(document))
    floor = counts.total() * _RAREST_CHARACTER_RATE
    common = [character for character in counts if not character.isspace() and counts[character] >= floor]
    return sorted(sorted(common, key=lambda character: (-counts[character], character))[:limit])


def _stands_alone(character: str, backend: tokenizers.Tokenizer) -> bool:
    """Say whether words are split around `character`, as around punctuation and Chinese characters."""
    text = backend.normalizer.normalize_str(f"a{character}")
    return len(backend.pre_tokenizer.pre_tokenize_str(text)) > 1
