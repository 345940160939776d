"""Tokenizers: loading, training, encoding and decoding, special ids, and ids that continue a word."""

import contextlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import tokenizers
from tokenizers.decoders import ByteLevel, Metaspace
from tokenizers.models import WordLevel, WordPiece

from mlm_jax.errors import InputError, one_line
from mlm_jax.files.atomic import write_atomically, write_together
from mlm_jax.files.targets import check_target, target_path
from mlm_jax.text.training import Kind, TrainingSettings, train_backend
from mlm_jax.text.word_cache import WordCache, is_bert, packed, word_cache
from mlm_jax.text.words import continuation_table
from mlm_jax.vocabulary.files import load_backend
from mlm_jax.vocabulary.folder_settings import TOKENIZER_CONFIG_FILE, VOCABULARY_FILE
from mlm_jax.vocabulary.roles import BERT_ROLES, Roles, check_roles, frame_of, set_frame
from mlm_jax.vocabulary.tokenizer_json import TOKENIZER_FILE, fingerprint_of, saved_config
from mlm_jax.vocabulary.unigram import WORD_MARK
from mlm_jax.vocabulary.wordpiece import (
    CONTINUATION_PREFIX,
    LARGEST_UNKNOWN_SHARE,
    NUM_EXAMPLES,
    WORD_LENGTH_LIMIT,
    check_text,
    check_texts,
    checked_size,
    decide_accents,
    sample_documents,
    thinned,
    unknown_warning,
)


class Tokenizer:
    """A tokenizer: text to token ids without the special tokens that frame a row, and back."""

    def __init__(self, backend: tokenizers.Tokenizer, source: str, roles: Roles = BERT_ROLES) -> None:
        """Wraps `backend`. Raises InputError, which names `source`, as `check_roles` does, or if an id is huge."""
        self.roles = roles
        # A published tokenizer.json may truncate texts to 512 tokens or pad them.
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        check_roles(backend, roles, source)
        self._backend = backend
        self._token_ids: dict[str, int] = backend.get_vocab(with_added_tokens=True)
        self.vocabulary_size = checked_size(source, self._token_ids)
        self.pad_token_id, self.unknown_token_id, self.cls_token_id, self.sep_token_id, self.mask_token_id = (
            self._token_ids[token] for token in roles.names
        )
        if backend.post_processor is None:
            set_frame(backend, roles)
        self.frame = frame_of(backend, self.cls_token_id, self.sep_token_id, source)
        self._added_tokens = backend.get_added_tokens_decoder()
        added = (token_id for token_id, token in self._added_tokens.items() if token.special)
        self.special_token_ids = tuple(sorted({*(self._token_ids[token] for token in roles.names), *added}))

    def __repr__(self) -> str:
        return f"Tokenizer({self.vocabulary_size:,} entries, fingerprint {self.fingerprint[:12]})"

    @classmethod
    def load(
        cls, path: str | Path, *, lowercase: bool | None = None, strip_accents: bool | None = None
    ) -> Self:
        """Loads a `tokenizer.json`, a BERT `vocab.txt`, or a folder with one of them (`tokenizer.json` if both).

        Settings and added tokens in the other files of the folder are read as transformers reads them
        (`tokenizer_config.json`, `added_tokens.json`, `special_tokens_map.json`, and the tokenizer's class in
        `config.json`), so the ids are those of transformers for the same folder. KerasHub's presets are read, too.

        Args:
            path: file or folder.
            lowercase: None follows the files. For a `vocab.txt` without other files it is guessed: a vocabulary is
                cased if an entry consists of letters only and one of them is uppercase.
            strip_accents: None follows the files; without files, `lowercase`. Guessed in the same case: a vocabulary
                with accented entries keeps accents.

        Raises:
            InputError: the file does not exist or does not parse, a special token is missing, or the tokenizer is of
                a class that is not supported.

        Warns if the casing is guessed and is not BERT's default, if files contradict each other, or if a `vocab.txt`
        repeats an entry.
        """
        if not isinstance(path, str | os.PathLike):
            raise InputError(f"tokenizer: expected a path, found {type(path).__name__}")
        for name, value in (("lowercase", lowercase), ("strip_accents", strip_accents)):
            if value not in (True, False, None):
                raise InputError(f"{name} = {value!r}: expected True, False or None")
        backend, file, roles = load_backend(Path(path), lowercase=lowercase, strip_accents=strip_accents)
        return cls(backend, str(file), roles)

    @classmethod
    def train(
        cls,
        documents: Iterable[str],
        vocabulary_size: int,
        *,
        lowercase: bool | None = None,
        strip_accents: bool | None = None,
        max_input_chars_per_word: int = WORD_LENGTH_LIMIT,
        sample_characters: int = 50_000_000,
        kind: Kind = "wordpiece",
        reserved: int = 0,
        user_tokens: Sequence[str] = (),
        k: int = 6,
    ) -> Self:
        """Trains a tokenizer on `documents`; the same documents yield the same one on every machine.

        Args:
            documents: texts to learn from.
            vocabulary_size: maximum number of entries; a small text yields fewer. Ids 0 to 4 are [PAD], [UNK],
                [CLS], [SEP] and [MASK], and reserved entries and user tokens follow. In WordPiece, then come the
                characters, as word starts and as continuations, and the learned pieces. If there are more characters
                than fit, the rarest are left out.
            lowercase: True lowercases texts, as BERT's uncased models do. None does so for WordPiece only.
            strip_accents: True removes accents, umlauts, and vowel signs that are marks ("ü" becomes "u"). None
                removes them if `lowercase` is true, as BERT does, but keeps them if more than 0.5 % of the visible
                characters have one, with a warning: in such a language they are letters.
            max_input_chars_per_word: in WordPiece, a longer word becomes [UNK].
            sample_characters: maximum number of characters to learn from. If there are more, only every second,
                fourth, … document is used. This limits memory to about 10 bytes per character of English.
            kind: "wordpiece", "byte-bpe", "unigram" (needs the extra `sentencepiece`), "characters" or "k-mers".
            reserved: number of entries [unused0], [unused1], … that no text has.
            user_tokens: tokens that are found in text before anything else, such as entity markers.
            k: length of k-mers, which do not overlap.

        Raises:
            InputError: the vocabulary has no room, the documents have no text, or a setting is invalid.
        """
        check_texts(user_tokens, "user_tokens")
        lowers = kind == "wordpiece" if lowercase is None else lowercase
        settings = TrainingSettings(
            kind,
            vocabulary_size,
            lowers,
            strip_accents,
            max_input_chars_per_word,
            reserved,
            tuple(user_tokens),
            k,
        )
        sample = sample_documents(documents, sample_characters)
        strip = decide_accents(sample, lowercase=lowers, strip_accents=strip_accents)
        tokenizer = cls(train_backend(sample, replace(settings, strip_accents=strip)), "training")
        tokenizer._warn_of_unknown_words(sample)
        return tokenizer

    def _warn_of_unknown_words(self, sample: Sequence[str]) -> None:
        """Warns if the text that a vocabulary was trained on has unknown words."""
        texts = thinned(sample)
        if warning := self.unknown_warning(texts, self.encode_batch(texts)):
            warnings.warn(warning, stacklevel=3)

    def save(self, folder: str | Path, **settings: Any) -> None:
        """Writes `tokenizer.json`, `tokenizer_config.json` and, of WordPiece, `vocab.txt` into `folder`, together.

        transformers reads the same ids from them, and so does `load` from the `vocab.txt` alone, which is rejected if
        it cannot express the tokenizer. `settings` are added to `tokenizer_config.json`.

        Raises InputError if `folder` cannot be a folder: it is a URL or a file, or cannot be written.
        """
        folder = target_path(folder)
        check_target(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = json.dumps(
            saved_config(self._bert_rules, self.word_length_limit, self._added_tokens, self.roles) | settings,
            indent=2,
            ensure_ascii=False,
        )
        # First, so that an interrupted save never leaves a vocab.txt whose casing is unknown.
        files = {folder / TOKENIZER_CONFIG_FILE: f"{config}\n".encode()}
        if isinstance(self._backend.model, WordPiece | WordLevel):
            files[folder / VOCABULARY_FILE] = self._vocabulary_lines()
        write_together(files | {folder / TOKENIZER_FILE: self._backend.to_str(pretty=True).encode()})

    def save_vocabulary(self, file: Path) -> None:
        """Writes a `vocab.txt`: the entries in the order of their ids, one per line."""
        write_atomically(file, self._vocabulary_lines())

    def _vocabulary_lines(self) -> bytes:
        by_id = {token_id: token for token, token_id in self._token_ids.items()}
        entries = (by_id.get(token_id, f"[unused_id_{token_id}]") for token_id in range(self.vocabulary_size))
        return "".join(f"{entry}\n" for entry in entries).encode()

    def encode(self, text: str, *, parse_special_tokens: bool = False) -> np.ndarray:
        """Returns the int32 ids `[length]` of `text`, without [CLS] and [SEP].

        Args:
            text: may be empty.
            parse_special_tokens: True reads a literal "[MASK]" as the special token, False as ordinary text. Other
                tokens that were added to the vocabulary, such as entity markers, are always read as such.
        """
        return self.encode_batch([text], parse_special_tokens=parse_special_tokens)[0]

    def encode_batch(self, texts: Sequence[str], *, parse_special_tokens: bool = False) -> list[np.ndarray]:
        """Returns the int32 ids of each text; see `encode`. Releases the GIL while the library works.

        Raises InputError for a text that is not a string, has a lone surrogate, or makes the library fail.
        """
        if parse_special_tokens:
            with self._checked(texts):
                encodings = self._prompt_backend.encode_batch_fast(list(texts), add_special_tokens=False)
                return [np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings]
        return self._encode_text(texts, words=False)

    def encode_words(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Returns the int32 ids of each text, and bool of the same shape: True for tokens that continue a word.

        Words are the parts of the tokenizer's pre-tokenizer. Raises InputError as `encode_batch` does.
        """
        if self.marks_words:
            return [(ids, self.continues_word[ids]) for ids in self.encode_batch(texts)]
        return [(row >> 1, row & 1 == 1) for row in self._encode_text(texts, words=True)]

    @contextlib.contextmanager
    def _checked(self, texts: Sequence[str]) -> Iterator[None]:
        """Turns the library's errors into InputErrors that name the text, which may be no Unicode string."""
        check_texts(texts, "texts")
        try:
            yield
        except (TypeError, AttributeError):
            for index, text in enumerate(texts):
                check_text(text, f"text {index}")
            raise
        except BaseException as error:
            if not _is_of_library(error):
                raise
            failing = next(
                (f"text {index}" for index, text in enumerate(texts) if self._fails(text)), "a text"
            )
            raise InputError(f"{failing}: the tokenizer cannot encode it: {one_line(error)}") from error

    def _fails(self, text: str) -> bool:
        try:
            self._text_backend.encode_batch_fast([text], add_special_tokens=False)
        except BaseException as error:
            if not _is_of_library(error):
                raise
            return True
        return False

    def _encode_text(self, texts: Sequence[str], *, words: bool) -> list[np.ndarray]:
        """Returns int32 ids; with `words`, 2 · id, or 2 · id + 1 for tokens that continue a word."""
        with self._checked(texts):
            if self._word_cache is not None:
                rows = self._word_cache.encode(texts)
                return rows if self.marks_words or words else [row >> 1 for row in rows]
            encode = self._text_backend.encode_batch if words else self._text_backend.encode_batch_fast
            encodings = encode(list(texts), add_special_tokens=False)
            return [packed(encoding, self._no_special, words) for encoding in encodings]

    @cached_property
    def _no_special(self) -> np.ndarray | None:
        """int32 `[vocabulary_size]`: ids that text may have, by the ids of the library; None if they are the same.

        A literal "[MASK]" may be an ordinary entry of the vocabulary. With BERT's rules and names, it is three words.
        """
        if is_bert(self._backend) and self.roles == BERT_ROLES:
            return None
        table = np.arange(self.vocabulary_size, dtype=np.int32)
        table[[self.pad_token_id, self.cls_token_id, self.sep_token_id, self.mask_token_id]] = (
            self.unknown_token_id
        )
        return table

    def unknown_warning(self, texts: Sequence[str], encoded: Sequence[np.ndarray]) -> str | None:
        """Returns a warning if more than 1 % of the tokens of `texts` are unknown, given the ids of each text."""
        share = sum(map(self._num_unknown, encoded)) / max(sum(map(len, encoded)), 1)
        words = self.unknown_words(texts, encoded) if share > LARGEST_UNKNOWN_SHARE else ()
        return unknown_warning(share, words, self.word_length_limit)

    def literal_warning(self, texts: Iterable[str]) -> str | None:
        """Returns a warning if a text has the name of a special token, such as "[SEP]", which is read as text."""
        for text in texts:
            if name := next((name for name in self.roles.names if name in text), None):
                return f"{name!r} in {text[:60]!r} is read as ordinary text, not as the special token"
        return None

    def unknown_words(self, texts: Sequence[str], encoded: Sequence[np.ndarray]) -> tuple[str, ...]:
        """Returns a few words of `texts` that have unknown tokens, given the ids of each text."""
        words = (
            word
            for text, ids in zip(texts, encoded, strict=True)
            if self._num_unknown(ids)
            for word in text.split()
        )
        unknown = (word for word in words if self._num_unknown(self.encode(word)))
        return tuple(islice(dict.fromkeys(islice(unknown, 2 * NUM_EXAMPLES)), NUM_EXAMPLES))

    def _num_unknown(self, token_ids: np.ndarray) -> int:
        return int(np.count_nonzero(token_ids == self.unknown_token_id))

    def decode(self, token_ids: Sequence[int] | np.ndarray) -> str:
        """Returns the text of `token_ids`, with pieces joined into words and with special tokens.

        Raises InputError for anything but ids of the vocabulary.
        """
        ids = np.asarray(token_ids)
        if ids.size and (ids.ndim != 1 or ids.dtype.kind not in "iu"):
            raise InputError(
                f"token_ids has shape {ids.shape} and dtype {ids.dtype}: expected a list of integers"
            )
        outside = ids[(ids < 0) | (ids >= self.vocabulary_size)]
        if outside.size:
            raise InputError(f"token_ids: {outside[0]}: expected ids in [0, {self.vocabulary_size})")
        return self._backend.decode(ids.tolist(), skip_special_tokens=False)

    def text_of(self, entry: str) -> tuple[str, bool]:
        """Returns the text of a vocabulary entry in place of a mask, and True if it takes the place of a space, too."""
        if isinstance(self._backend.decoder, ByteLevel):
            takes_space = self._added_tokens[self.mask_token_id].lstrip
            return self._backend.decoder.decode([entry]), takes_space
        if isinstance(self._backend.decoder, Metaspace):
            # Whatever begins a word has its own space.
            return entry.replace(WORD_MARK, " "), True
        prefix = getattr(self._backend.model, "continuing_subword_prefix", None)
        continues = prefix == CONTINUATION_PREFIX and entry.startswith(CONTINUATION_PREFIX)
        return entry.removeprefix(CONTINUATION_PREFIX) if continues else entry, continues

    def id_to_token(self, token_id: int) -> str | None:
        """Returns the vocabulary entry of `token_id`, or None if there is none. Raises InputError for anything else."""
        if not isinstance(token_id, int | np.integer):
            raise InputError(f"token_id {token_id!r}: expected an integer")
        if not 0 <= token_id < self.vocabulary_size:
            return None
        return self._backend.id_to_token(token_id)

    def token_to_id(self, token: str) -> int | None:
        """Returns the id of the vocabulary entry `token`, or None if there is none. Raises InputError for no string."""
        if not isinstance(token, str):
            raise InputError(f"token {token!r}: expected a string")
        return self._token_ids.get(token)

    @property
    def marks_words(self) -> bool:
        """True if an entry alone tells that it continues a word."""
        return self._continuation_table is not None

    @property
    def continues_word(self) -> np.ndarray:
        """Bool `[vocabulary_size]`: True for entries that continue a word ("##ing"), if the tokenizer marks words."""
        assert self._continuation_table is not None, "a tokenizer that marks words"
        return self._continuation_table

    @cached_property
    def _continuation_table(self) -> np.ndarray | None:
        return continuation_table(self._backend, self.vocabulary_size)

    @cached_property
    def fingerprint(self) -> str:
        """Hexadecimal sha256 of everything that determines `encode`.

        A `vocab.txt` and the `tokenizer.json` saved from it have the same fingerprint, in any process.
        """
        return fingerprint_of(self._backend, self.roles)

    def bert_settings(self) -> dict[str, bool]:
        """Returns the settings that complete a `vocab.txt`, named as in a `tokenizer_config.json`.

        Raises:
            InputError: the tokenizer does not follow BERT's rules, so a `vocab.txt` cannot express it.
        """
        if self.roles != BERT_ROLES:
            raise InputError(
                f"tokenizer: its special tokens are {', '.join(self.roles.names)}: must be "
                f"{', '.join(BERT_ROLES.names)}"
            )
        if self._bert_rules is None:
            raise InputError(
                f"tokenizer of {', '.join(self._kinds)}: must be WordPiece, BertNormalizer and BertPreTokenizer"
            )
        if self.word_length_limit != WORD_LENGTH_LIMIT:
            raise InputError(
                f"tokenizer: max_input_chars_per_word is {self.word_length_limit}: must be {WORD_LENGTH_LIMIT}"
            )
        added = [
            token.content for token in self._added_tokens.values() if token.content not in self.roles.names
        ]
        if added:
            raise InputError(f"tokenizer: a vocab.txt cannot express its added tokens {', '.join(added)}")
        return self._bert_rules

    @property
    def backend(self) -> tokenizers.Tokenizer:
        """The library's tokenizer. Do not change it."""
        return self._backend

    @property
    def kind(self) -> str:
        """Kind of the model: WordPiece, BPE, ..."""
        return self._kinds[0]

    @cached_property
    def _kinds(self) -> tuple[str, ...]:
        parts = (self._backend.model, self._backend.normalizer, self._backend.pre_tokenizer)
        return tuple(type(part).__name__ for part in parts)

    @cached_property
    def _bert_rules(self) -> dict[str, bool] | None:
        """Settings of BERT's rules, or None if the tokenizer does not follow them."""
        normalizer, model = self._backend.normalizer, self._backend.model
        if self.roles != BERT_ROLES:
            return None
        if self._kinds != ("WordPiece", "BertNormalizer", "BertPreTokenizer") or not normalizer.clean_text:
            return None
        if (model.continuing_subword_prefix, model.unk_token) != (CONTINUATION_PREFIX, "[UNK]"):
            return None
        lowercase, strip_accents = normalizer.lowercase, normalizer.strip_accents
        return {
            "do_lower_case": lowercase,
            "strip_accents": lowercase if strip_accents is None else strip_accents,
            "tokenize_chinese_chars": normalizer.handle_chinese_chars,
        }

    @property
    def word_length_limit(self) -> int:
        """Largest length of a word that WordPiece divides into pieces."""
        return int(getattr(self._backend.model, "max_input_chars_per_word", WORD_LENGTH_LIMIT))

    @cached_property
    def _text_backend(self) -> tokenizers.Tokenizer:
        """Reads the five special tokens as ordinary text, and other added tokens as tokens."""
        settings = json.loads(self._backend.to_str())
        added = settings["added_tokens"]
        if all(token["special"] == (token["content"] in self.roles.names) for token in added):
            return self._backend
        for token in added:
            token["special"] = token["content"] in self.roles.names
        backend = tokenizers.Tokenizer.from_str(json.dumps(settings))
        backend.encode_special_tokens = True
        return backend

    @cached_property
    def _word_cache(self) -> WordCache | None:
        return word_cache(self._text_backend, self._no_special, words=not self.marks_words)

    @cached_property
    def _prompt_backend(self) -> tokenizers.Tokenizer:
        # A second instance, because the setting belongs to the object, which other threads may be using.
        backend = tokenizers.Tokenizer.from_str(self._backend.to_str())
        backend.encode_special_tokens = False
        return backend


def _is_of_library(error: BaseException) -> bool:
    """True for the bare Exception that the library raises for a text, and for a panic, which is no Exception."""
    return type(error) is Exception or type(error).__name__ == "PanicException"
