"""BERT tokenizers: loading, training, encoding and decoding, special ids, and ids that continue a word."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np
import tokenizers
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

from mlm_jax.errors import InputError
from mlm_jax.files.atomic import write_atomically
from mlm_jax.text.wordpiece import (
    CONTINUATION_PREFIX,
    SPECIAL_TOKENS,
    bert_backend,
    check_text,
    train_vocabulary,
)

TOKENIZER_FILE = "tokenizer.json"
VOCABULARY_FILE = "vocab.txt"

# Longer texts are encoded in pieces. Encoding needs about 130 bytes per character in the library, and 15 for the
# list of words.
_PIECE_CHARACTERS = 1 << 16
# Size in characters at which the word table is cleared: about 120 MB, or half a million English words.
_KNOWN_SIZE_LIMIT = 1 << 24
_KNOWN_WORD_OVERHEAD = 24
# A longer "word" is a Chinese sentence or not text at all; it is encoded separately.
_LONG_WORD = 32


class Tokenizer:
    """A BERT tokenizer: text to token ids without [CLS] and [SEP], and back."""

    def __init__(self, backend: tokenizers.Tokenizer, source: str) -> None:
        """Wraps `backend`. Raises InputError, which names `source`, if one of the five special tokens is missing."""
        missing = [token for token in SPECIAL_TOKENS if backend.token_to_id(token) is None]
        if missing:
            raise InputError(
                f"{source}: no {' and no '.join(missing)} in the vocabulary; "
                f"a BERT vocabulary has {', '.join(SPECIAL_TOKENS)}"
            )
        # A published tokenizer.json may truncate texts to 512 tokens or pad them.
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

    def __repr__(self) -> str:
        return f"Tokenizer({self.vocabulary_size:,} entries, fingerprint {self.fingerprint[:12]})"

    @classmethod
    def load(
        cls, path: str | Path, *, lowercase: bool | None = None, strip_accents: bool | None = None
    ) -> Self:
        """Loads a `tokenizer.json`, a BERT `vocab.txt`, or a folder with one of them (`tokenizer.json` if both).

        Args:
            path: file or folder.
            lowercase: for a `vocab.txt` only. None reads `do_lower_case` from a `tokenizer_config.json` in the same
                folder. Without that file it is guessed: a vocabulary is cased if an entry consists of letters only
                and one of them is uppercase.
            strip_accents: for a `vocab.txt` only. None reads it from the same file; without that file, accents are
                stripped if the text is lowercased, as in BERT.

        Raises:
            InputError: the file does not exist or does not parse, or a special token is missing.
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
        if strip_accents is None:
            strip_accents = options.get("strip_accents")
        backend = bert_backend(
            vocabulary,
            lowercase=lowercase,
            strip_accents=strip_accents,
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
    ) -> Self:
        """Trains WordPiece on `documents`; the same documents yield the same vocabulary on every machine.

        Args:
            documents: texts to learn from.
            vocabulary_size: maximum number of entries; a small text yields fewer. Ids 0 to 4 are [PAD], [UNK],
                [CLS], [SEP] and [MASK]. The characters follow, as word starts and as continuations, then the learned
                pieces. If there are more characters than fit, the rarest are left out.
            lowercase: True lowercases texts and strips their accents, as BERT's uncased models do.
            sample_characters: maximum number of characters to learn from. If there are more, only every second,
                fourth, … document is used. This limits memory to about 10 bytes per character of English.

        Raises:
            InputError: the vocabulary has no room for characters, or the documents have no text.
        """
        vocabulary = train_vocabulary(
            documents, vocabulary_size, lowercase=lowercase, sample_characters=sample_characters
        )
        return cls(bert_backend(vocabulary, lowercase=lowercase), "training")

    def save(self, folder: str | Path) -> None:
        """Writes `tokenizer.json` and `vocab.txt` into `folder`, each atomically."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.save_vocabulary(folder / VOCABULARY_FILE)
        write_atomically(folder / TOKENIZER_FILE, self._backend.to_str(pretty=True).encode())

    def save_vocabulary(self, file: Path) -> None:
        """Writes a `vocab.txt`: the entries in the order of their ids, one per line."""
        by_id = {token_id: token for token, token_id in self._token_ids.items()}
        entries = (by_id.get(token_id, f"[unused_id_{token_id}]") for token_id in range(self.vocabulary_size))
        write_atomically(file, "".join(f"{entry}\n" for entry in entries).encode())

    def encode(self, text: str, *, parse_special_tokens: bool = False) -> np.ndarray:
        """Returns the int32 ids `[length]` of `text`, without [CLS] and [SEP].

        Args:
            text: may be empty.
            parse_special_tokens: True reads a literal "[MASK]" as the special token, False as ordinary text.
        """
        return self.encode_batch([text], parse_special_tokens=parse_special_tokens)[0]

    def encode_batch(self, texts: Sequence[str], *, parse_special_tokens: bool = False) -> list[np.ndarray]:
        """Returns the int32 ids of each text; see `encode`. Releases the GIL while the library works.

        Raises InputError for a text that is not a string or has a lone surrogate.
        """
        try:
            if parse_special_tokens:
                encodings = self._prompt_backend.encode_batch_fast(list(texts), add_special_tokens=False)
            elif self._splits_at_spaces:
                return self._encode_in_pieces(texts)
            else:
                encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        except (TypeError, AttributeError):
            for index, text in enumerate(texts):
                check_text(text, f"text {index}")
            raise
        return [np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings]

    def _encode_in_pieces(self, texts: Sequence[str]) -> list[np.ndarray]:
        if all(len(text) <= _PIECE_CHARACTERS for text in texts):
            return self._encode_by_words(texts)
        return [
            np.concatenate([self._encode_by_words([piece])[0] for piece in _pieces(text)]) for text in texts
        ]

    def _encode_by_words(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Encodes with a table of the words seen so far, which make up most of a text.

        On 10 MB of Wikipedia this takes half the CPU time of `encode_batch_fast` if the table is empty (1.6 to 2.3
        times faster in 8 rounds, with one thread and with two), and a seventh once the words are known.
        """
        if self._known_size > _KNOWN_SIZE_LIMIT:
            # A new table, because other threads may still read the old one.
            self._known, self._known_size = {}, 0
        known = self._known
        # Other separators, such as tabs, stay inside a "word" and are left to the library.
        texts_words = [text.replace("\n", " ").split(" ") for text in texts]
        new_words = set().union(*texts_words).difference(known)
        for batch in _batches(word for word in new_words if len(word) <= _LONG_WORD):
            known.update(zip(batch, self._encode_words(batch), strict=True))
        for word in new_words:
            if len(word) > _LONG_WORD:
                (encoding,) = self._backend.encode_batch_fast([word], add_special_tokens=False)
                known[word] = np.asarray(encoding.ids, dtype=np.int32).tobytes()
        self._known_size += sum(map(len, new_words)) + _KNOWN_WORD_OVERHEAD * len(new_words)
        return [
            np.frombuffer(bytearray().join(map(known.__getitem__, words)), dtype=np.int32)
            for words in texts_words
        ]

    def _encode_words(self, words: Sequence[str]) -> list[bytes]:
        """Returns the int32 ids of each word as bytes. One call for all words is faster than one call per word."""
        # encode() would hold the GIL, and encode_batch_fast() does not return the word of each token.
        (encoding,) = self._backend.encode_batch([words], is_pretokenized=True, add_special_tokens=False)
        data = np.asarray(encoding.ids, dtype=np.int32).tobytes()
        lengths = np.bincount(np.asarray(encoding.word_ids, dtype=np.int64), minlength=len(words))
        ends = np.cumsum(lengths * np.dtype(np.int32).itemsize).tolist()
        return [data[start:end] for start, end in pairwise([0, *ends])]

    def decode(self, token_ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of `token_ids`, with pieces joined into words and with special tokens."""
        return self._backend.decode([int(token_id) for token_id in token_ids], skip_special_tokens=False)

    def id_to_token(self, token_id: int) -> str | None:
        """Returns the vocabulary entry of `token_id`, or None if there is none."""
        return self._backend.id_to_token(token_id)

    def token_to_id(self, token: str) -> int | None:
        """Returns the id of the vocabulary entry `token`, or None if there is none."""
        return self._token_ids.get(token)

    @cached_property
    def continues_word(self) -> np.ndarray:
        """Bool `[vocabulary_size]`: True for entries that continue a word ("##ing")."""
        table = np.zeros(self.vocabulary_size, dtype=bool)
        table[[i for token, i in self._token_ids.items() if token.startswith(CONTINUATION_PREFIX)]] = True
        return table

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal sha256 of everything that determines `encode`.

        A `vocab.txt` and the `tokenizer.json` saved from it have the same fingerprint, in any process.
        """
        settings = json.loads(self._backend.to_str())
        normalizer = settings["normalizer"]
        if normalizer and normalizer["type"] == "BertNormalizer" and normalizer["strip_accents"] is None:
            normalizer["strip_accents"] = normalizer["lowercase"]
        added = sorted(settings["added_tokens"], key=lambda token: token["id"])
        parts = [settings["model"], normalizer, settings["pre_tokenizer"], added]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def bert_settings(self) -> dict[str, bool]:
        """Returns the entries of a tokenizer_config.json that complete a `vocab.txt`.

        Raises:
            InputError: the tokenizer does not follow BERT's rules, so a `vocab.txt` cannot express it.
        """
        settings = json.loads(self._backend.to_str())
        normalizer = settings["normalizer"] or {}
        kinds = (
            settings["model"]["type"],
            normalizer.get("type"),
            (settings["pre_tokenizer"] or {}).get("type"),
        )
        if kinds != ("WordPiece", "BertNormalizer", "BertPreTokenizer"):
            raise InputError(
                f"tokenizer of {', '.join(map(str, kinds))}: must be WordPiece, BertNormalizer and BertPreTokenizer"
            )
        lowercase, strip_accents = normalizer["lowercase"], normalizer["strip_accents"]
        return {
            "do_lower_case": lowercase,
            "strip_accents": lowercase if strip_accents is None else strip_accents,
            "tokenize_chinese_chars": normalizer["handle_chinese_chars"],
        }

    @cached_property
    def _splits_at_spaces(self) -> bool:
        """True if the ids of a text are the ids of its space-separated words, as BERT's rules guarantee."""
        added = self._backend.get_added_tokens_decoder().values()
        return (
            isinstance(self._backend.normalizer, BertNormalizer)
            and isinstance(self._backend.pre_tokenizer, BertPreTokenizer)
            and all(token.special for token in added)
        )

    @cached_property
    def _prompt_backend(self) -> tokenizers.Tokenizer:
        # A second instance, because the setting belongs to the object, which other threads may be using.
        backend = tokenizers.Tokenizer.from_str(self._backend.to_str())
        backend.encode_special_tokens = False
        return backend


def _pieces(text: str) -> Iterator[str]:
    """Divides `text` into pieces of at most `_PIECE_CHARACTERS`, at a space or line end if there is one."""
    start = 0
    while len(text) - start > _PIECE_CHARACTERS:
        limit = start + _PIECE_CHARACTERS
        # Such a long text without either is Chinese, where each character is a word, or not text at all.
        space = max(text.rfind(" ", start + 1, limit), text.rfind("\n", start + 1, limit))
        end = limit if space < 0 else space
        yield text[start:end]
        start = end
    yield text[start:]


def _batches(words: Iterable[str]) -> Iterator[list[str]]:
    """Divides `words` into lists of about `_PIECE_CHARACTERS`."""
    batch: list[str] = []
    characters = 0
    for word in words:
        batch.append(word)
        characters += len(word)
        if characters > _PIECE_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _read_tokenizer_json(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
    # The library raises a bare Exception for anything it cannot parse.
    except Exception as error:
        raise InputError(f"{path}: not a tokenizer.json: {' '.join(str(error).split())}") from error


def _read_vocabulary(path: Path) -> list[str]:
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: invalid UTF-8 at byte {error.start}; expected one entry per line"
        ) from error
    # Only "\n" ends a line: published vocabularies hold entries such as U+2028, where str.splitlines would split.
    entries = [line.removesuffix("\r") for line in text.split("\n")]
    while entries and not entries[-1]:
        entries.pop()
    if not entries:
        raise InputError(f"{path}: file is empty; expected one vocabulary entry per line")
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
    # Only words count: uncased vocabularies also have entries such as [MASK] and <S>.
    word = token.removeprefix(CONTINUATION_PREFIX)
    return word.isalpha() and word != word.lower()
