"""Tokenized documents on disk: format, memory-mapped reader.

    FOLDER/tokens-00000.bin      token ids, document by document; uint16 or uint32, little-endian
           documents-00000.bin   uint64 [num_documents + 1], the offset of each document in the shard
           words-00000.bin       a bit per token (`word_bits.py`), for some tokenizers
           checksums-00000.bin   checksums of pieces of the tokens, then of the words (`piece_digests.py`)
           …
           tokenizer/            the tokenizer of the data
           manifest.json         written last; a folder with a manifest is complete

Shards may also be in subfolders, one for each part that was prepared separately; the manifest lists them.

With `separator="sep"`, each document ends with the id of [SEP], which its offsets include.
"""

import hashlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from mlm_jax.corpus.progress import track
from mlm_jax.data.folders import Folder, RemoteFile, open_folder
from mlm_jax.data.manifest import (
    MANIFEST_FILE,
    OFFSET_DTYPE,
    ShardRecord,
    check_shard_files,
    content_fingerprint,
    read_manifest,
    shard_names,
    shard_records,
)
from mlm_jax.data.order import cache_bytes
from mlm_jax.data.piece_digests import num_pieces
from mlm_jax.data.remote_pieces import PieceCache, PiecewiseFile
from mlm_jax.data.shard_writer import document_offsets, shard_parts
from mlm_jax.data.windows import Source, array_windows, local_file, map_file, name_of, read_windows
from mlm_jax.data.word_bits import WordBits, num_bytes, unpacked, window_bytes
from mlm_jax.errors import InputError, RunError
from mlm_jax.text.encode import EncodedBlock, Separator, UnknownTokens, encode_documents, token_dtype
from mlm_jax.text.tokenizer import Tokenizer
from mlm_jax.vocabulary.wordpiece import check_text, check_texts

DEFAULT_SHARD_TOKENS = 1 << 26
# A memory map in Python keeps a file descriptor open, and many systems allow 1,024 per process.
_MAX_MAPPED_SHARDS = 128


@dataclass(frozen=True)
class Shard:
    """One shard. Its arrays are memory-mapped on first use, and again after unpickling.

    token_source, document_source, word_source: local or remote files, or arrays for a shard in memory; None if the
        entries of the vocabulary tell where words begin.
    checksum_source: checksums of the pieces of tokens and words; None for a shard in memory or of earlier versions.
    mapped: True reads windows from memory maps; False opens the file for each call.
    """

    num_documents: int
    num_tokens: int
    token_source: Source = field(repr=False)
    document_source: Source = field(repr=False)
    dtype: np.dtype
    mapped: bool = True
    word_source: Source | None = field(default=None, repr=False)
    checksum_source: Source | None = field(default=None, repr=False)

    @cached_property
    def tokens(self) -> np.ndarray:
        """Token ids `[num_tokens]`, uint16 or uint32; read-only if they are in a file."""
        return map_file(self.token_source, self.dtype)

    @cached_property
    def document_offsets(self) -> np.ndarray:
        """uint64 `[num_documents + 1]`: document i is `tokens[offsets[i] : offsets[i + 1]]`."""
        return map_file(self.document_source, OFFSET_DTYPE)

    def token_windows(self, starts: np.ndarray, width: int) -> np.ndarray:
        """Returns `tokens[start : start + width]` for each of `starts`, `[n, width]`, padded with the last token."""
        if self.mapped:
            return array_windows(self.tokens, starts, width)
        return read_windows(self.token_source, self.dtype, self.num_tokens, starts, width)

    def word_windows(self, starts: np.ndarray, width: int) -> np.ndarray:
        """Returns bool `[n, width]`: True for the tokens of each window that continue a word; see `token_windows`."""
        assert self.word_source is not None, "a shard with words"
        first, size = window_bytes(starts, width)
        if self.mapped:
            windows = array_windows(self.word_bits, first, size)
        else:
            windows = read_windows(
                self.word_source, np.dtype(np.uint8), num_bytes(self.num_tokens), first, size
            )
        return unpacked(windows, starts, width)

    @cached_property
    def word_bits(self) -> np.ndarray:
        """uint8 `[num_bytes(num_tokens)]`; see `word_bits.py`."""
        assert self.word_source is not None, "a shard with words"
        return map_file(self.word_source, np.dtype(np.uint8))

    def offset_windows(self, starts: np.ndarray, width: int) -> np.ndarray:
        """Returns the same for `document_offsets`, uint64 `[n, width]`. Raises RunError if they are damaged."""
        if self.mapped:
            offsets = array_windows(self.document_offsets, starts, width)
        else:
            offsets = read_windows(self.document_source, OFFSET_DTYPE, self.num_documents + 1, starts, width)
        self._check_offsets(offsets, starts)
        return offsets

    def read_document_offsets(self) -> np.ndarray:
        """Returns a copy of `document_offsets` that keeps neither a memory map nor a file open.

        Raises RunError if they are damaged.
        """
        source = self.document_source
        if isinstance(source, np.ndarray):
            return source
        offsets = np.fromfile(local_file(source), OFFSET_DTYPE)
        self._check_offsets(offsets[None], np.zeros(1, np.int64))
        if (offsets[0], offsets[-1]) != (0, self.num_tokens):
            raise RunError(
                f"{name_of(source)}: damaged: from {offsets[0]} to {offsets[-1]}, must be from 0 to {self.num_tokens}, "
                "the number of tokens; prepare the folder again"
            )
        return offsets

    def in_pieces(self, cache: PieceCache) -> Self:
        """Returns a remote shard of which only the tokens and words that are read are fetched, by `cache`."""
        tokens, words, checksums = self.token_source, self.word_source, self.checksum_source
        assert isinstance(tokens, RemoteFile), "a remote shard"
        assert isinstance(checksums, RemoteFile), "a shard with checksums"
        return replace(
            self,
            mapped=False,
            token_source=PiecewiseFile(tokens, checksums, 0, cache),
            word_source=PiecewiseFile(words, checksums, num_pieces(tokens.size), cache)
            if isinstance(words, RemoteFile)
            else words,
        )

    def request(self, starts: np.ndarray, width: int) -> None:
        """Begins to fetch what `token_windows` will read, if the shard is in pieces."""
        if isinstance(self.token_source, PiecewiseFile):
            self.token_source.request(starts * self.dtype.itemsize, width * self.dtype.itemsize)

    def request_words(self, starts: np.ndarray, width: int) -> None:
        """Begins to fetch what `word_windows` will read, if the shard is in pieces."""
        if isinstance(self.word_source, PiecewiseFile):
            self.word_source.request(*window_bytes(starts, width))

    def fetch_later(self, start: int, stop: int, *, with_words: bool) -> None:
        """Fetches tokens `start` to `stop` - 1 in the background, if the shard is in pieces."""
        if isinstance(self.token_source, PiecewiseFile):
            self.token_source.fetch_later(start * self.dtype.itemsize, stop * self.dtype.itemsize)
        if with_words and isinstance(self.word_source, PiecewiseFile):
            self.word_source.fetch_later(start // 8, num_bytes(stop))

    def check_ids(self, ids: np.ndarray, starts: np.ndarray, vocabulary_size: int) -> None:
        """Raises RunError if one of the token windows `ids`, `[n, width]` at `starts`, is not in the vocabulary."""
        wrong = ids >= vocabulary_size
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            position = min(starts[row] + column, self.num_tokens - 1)
            raise RunError(
                f"{name_of(self.token_source)}: damaged: token {position:,} has the id {ids[row, column]}, must be "
                f"below {vocabulary_size}, the size of the vocabulary; prepare the folder again"
            )

    def _check_offsets(self, offsets: np.ndarray, starts: np.ndarray) -> None:
        wrong = (offsets[:, 1:] < offsets[:, :-1]) | (offsets[:, 1:] > self.num_tokens)
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            before, offset = offsets[row, column : column + 2]
            raise RunError(
                f"{name_of(self.document_source)}: damaged: offset {starts[row] + column + 1:,} is {offset}, must be "
                f"from {before}, the one before, to {self.num_tokens}; prepare the folder again"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Omits memory maps, because pickling one would copy the whole file."""
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}


@dataclass(frozen=True)
class TokenStore:
    """Tokenized documents, on disk or in memory.

    fingerprint: sha256 of everything that determines the tokens and their division into shards. The documents of
    a file have the same fingerprint in memory and on disk if `shard_tokens` is the same.
    """

    shards: tuple[Shard, ...]
    separator: Separator
    vocabulary_size: int
    tokenizer_fingerprint: str
    fingerprint: str
    records: tuple[ShardRecord, ...] = ()
    """Manifest entries of the shards; empty for a store in memory."""
    cache: PieceCache | None = field(default=None, repr=False, compare=False)
    """Cache of the shards' pieces; see `in_pieces`."""

    @property
    def num_tokens(self) -> int:
        """Number of tokens in all shards, including separators."""
        return sum(shard.num_tokens for shard in self.shards)

    @property
    def has_words(self) -> bool:
        """True if every shard has the bits that tell where words begin."""
        return all(shard.word_source is not None for shard in self.shards)

    @property
    def num_documents(self) -> int:
        """Number of documents in all shards."""
        return sum(shard.num_documents for shard in self.shards)

    @property
    def token_bytes(self) -> int:
        """Size of all tokens in bytes."""
        return sum(shard.num_tokens * shard.dtype.itemsize for shard in self.shards)

    def in_pieces(self) -> Self:
        """Returns the store with remote shards read in pieces, which are kept in memory, instead of as whole files.

        Warns if the shards were prepared without the checksums of pieces, and leaves them as they are.
        """
        if not any(isinstance(shard.token_source, RemoteFile) for shard in self.shards):
            return self
        if any(shard.checksum_source is None for shard in self.shards):
            warnings.warn(
                f"{name_of(self.shards[0].token_source)}: prepared by a version that did not store the checksums of "
                "pieces, so whole shards are downloaded; prepare the data again to read only what is needed",
                stacklevel=2,
            )
            return self
        cache = PieceCache(cache_bytes())
        return replace(self, shards=tuple(shard.in_pieces(cache) for shard in self.shards), cache=cache)

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[str],
        tokenizer: Tokenizer,
        *,
        separator: Separator = "sep",
        shard_tokens: int = DEFAULT_SHARD_TOKENS,
    ) -> Self:
        """Tokenizes `documents` in memory, leaving out documents without tokens.

        Raises InputError if a document is not a string or no document has a token. Warns if more than 1 % of the tokens
        are unknown.
        """
        check_texts(documents, "documents")
        shards: list[Shard] = []
        records: list[ShardRecord] = []
        parts: list[EncodedBlock] = []
        unknown = UnknownTokens(tokenizer)
        blocks = unknown.watch(encode_documents(_checked(documents), tokenizer, separator))
        for part, closes_shard in shard_parts(blocks, shard_tokens):
            if part.tokens.size:
                parts.append(part)
            if closes_shard and parts:
                shard, record = _shard_in_memory(parts)
                shards.append(shard)
                records.append(record)
                parts = []
        if not shards:
            raise InputError("documents: none has a token; expected at least one with text")
        if warning := unknown.warning():
            warnings.warn(f"documents: {warning}", stacklevel=2)
        identity = (separator, tokenizer.vocabulary_size, tokenizer.fingerprint)
        return cls(tuple(shards), *identity, content_fingerprint(*identity, records))


def open_shards(path: str | Path) -> TokenStore:
    """Opens a prepared folder at a path or fsspec URL: reads its manifest and checks the sizes of its files.

    Does not map or download anything yet. `verification.py` compares checksums; remote files are also compared when
    they are downloaded. Raises InputError, which names the file, if the folder is not a complete preparation of this
    format version or a shard is missing or truncated.
    """
    folder = open_folder(path)
    manifest = read_manifest(folder)
    records, vocabulary_size = shard_records(manifest), manifest["vocabulary_size"]
    check_shard_files(folder, records, vocabulary_size)
    store = TokenStore(
        shards=_shards(folder, records, vocabulary_size),
        separator=manifest["separator"],
        vocabulary_size=vocabulary_size,
        tokenizer_fingerprint=manifest["tokenizer_fingerprint"],
        fingerprint=manifest["fingerprint"],
        records=tuple(records),
    )
    expected = content_fingerprint(
        store.separator, store.vocabulary_size, store.tokenizer_fingerprint, records
    )
    if store.fingerprint != expected:
        raise InputError(f"{folder}/{MANIFEST_FILE}: damaged: its fingerprint does not match its content")
    return store


def _checked(documents: Iterable[str]) -> Iterator[str]:
    for index, document in enumerate(track(documents, "tokenize", "documents")):
        check_text(document, f"document {index}")
        yield document


def _shard_in_memory(parts: Sequence[EncodedBlock]) -> tuple[Shard, ShardRecord]:
    tokens = np.concatenate([part.tokens for part in parts])
    offsets = document_offsets(np.concatenate([part.document_lengths for part in parts]))
    bits = WordBits()
    for part in parts:
        if part.continues_word is not None:
            bits.append(part.continues_word)
    words = bits.packed() if bits.size else None
    hashes = [hashlib.sha256(values.tobytes()).hexdigest() for values in (tokens, offsets)]
    if words is not None:
        hashes.append(hashlib.sha256(words.tobytes()).hexdigest())
    counts = (len(offsets) - 1, len(tokens))
    return Shard(*counts, tokens, offsets, tokens.dtype, word_source=words), ShardRecord(*counts, *hashes)


def _shards(folder: Folder, records: Sequence[ShardRecord], vocabulary_size: int) -> tuple[Shard, ...]:
    dtype = token_dtype(vocabulary_size)
    return tuple(
        Shard(
            record.documents,
            record.tokens,
            folder.file(tokens, record.token_bytes(vocabulary_size), record.tokens_sha256),
            folder.file(documents, record.offset_bytes, record.documents_sha256),
            dtype,
            mapped=len(records) <= _MAX_MAPPED_SHARDS,
            word_source=None
            if record.words_sha256 is None
            else folder.file(words, record.word_bytes, record.words_sha256),
            checksum_source=None
            if record.checksums_sha256 is None
            else folder.file(checksums, record.checksum_bytes(vocabulary_size), record.checksums_sha256),
        )
        for record, (tokens, documents, words, checksums) in zip(records, shard_names(records), strict=True)
    )
