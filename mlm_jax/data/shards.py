"""Tokenized documents on disk: format, memory-mapped reader.

    FOLDER/tokens-00000.bin      token ids, document by document; uint16 or uint32, little-endian
           documents-00000.bin   uint64 [num_documents + 1], the offset of each document in the shard
           …
           tokenizer/            the tokenizer of the data
           manifest.json         written last; a folder with a manifest is complete

Shards may also be in subfolders, one for each part that was prepared separately; the manifest lists them.

With `separator="sep"`, each document ends with the id of [SEP], which its offsets include.
"""

import hashlib
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
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
from mlm_jax.data.shard_writer import document_offsets, shard_parts
from mlm_jax.data.word_bits import WordBits, num_bytes, unpacked, window_bytes
from mlm_jax.errors import InputError, RunError
from mlm_jax.text.encode import EncodedBlock, Separator, UnknownTokens, encode_documents, token_dtype
from mlm_jax.text.tokenizer import Tokenizer
from mlm_jax.vocabulary.wordpiece import check_text, check_texts

DEFAULT_SHARD_TOKENS = 1 << 26
# A memory map in Python keeps a file descriptor open, and many systems allow 1,024 per process.
_MAX_MAPPED_SHARDS = 128

Source = Path | RemoteFile | np.ndarray


@dataclass(frozen=True)
class Shard:
    """One shard. Its arrays are memory-mapped on first use, and again after unpickling.

    token_source, document_source, word_source: local or remote files, or arrays for a shard in memory; None if the
        entries of the vocabulary tell where words begin.
    mapped: True reads windows from memory maps; False opens the file for each call.
    """

    num_documents: int
    num_tokens: int
    token_source: Source = field(repr=False)
    document_source: Source = field(repr=False)
    dtype: np.dtype
    mapped: bool = True
    word_source: Source | None = field(default=None, repr=False)

    @cached_property
    def tokens(self) -> np.ndarray:
        """Token ids `[num_tokens]`, uint16 or uint32; read-only if they are in a file."""
        return _mapped(self.token_source, self.dtype)

    @cached_property
    def document_offsets(self) -> np.ndarray:
        """uint64 `[num_documents + 1]`: document i is `tokens[offsets[i] : offsets[i + 1]]`."""
        return _mapped(self.document_source, OFFSET_DTYPE)

    def token_windows(self, starts: np.ndarray, width: int) -> np.ndarray:
        """Returns `tokens[start : start + width]` for each of `starts`, `[n, width]`, padded with the last token."""
        if self.mapped:
            return _windows(self.tokens, starts, width)
        return _read_windows(self.token_source, self.dtype, self.num_tokens, starts, width)

    def word_windows(self, starts: np.ndarray, width: int) -> np.ndarray:
        """Returns bool `[n, width]`: True for the tokens of each window that continue a word; see `token_windows`."""
        assert self.word_source is not None, "a shard with words"
        first, size = window_bytes(starts, width)
        if self.mapped:
            windows = _windows(self.word_bits, first, size)
        else:
            windows = _read_windows(
                self.word_source, np.dtype(np.uint8), num_bytes(self.num_tokens), first, size
            )
        return unpacked(windows, starts, width)

    @cached_property
    def word_bits(self) -> np.ndarray:
        """uint8 `[num_bytes(num_tokens)]`; see `word_bits.py`."""
        assert self.word_source is not None, "a shard with words"
        return _mapped(self.word_source, np.dtype(np.uint8))

    def offset_windows(self, starts: np.ndarray, width: int) -> np.ndarray:
        """Returns the same for `document_offsets`, uint64 `[n, width]`. Raises RunError if they are damaged."""
        if self.mapped:
            offsets = _windows(self.document_offsets, starts, width)
        else:
            offsets = _read_windows(self.document_source, OFFSET_DTYPE, self.num_documents + 1, starts, width)
        self._check_offsets(offsets, starts)
        return offsets

    def read_document_offsets(self) -> np.ndarray:
        """Returns a copy of `document_offsets` that keeps neither a memory map nor a file open.

        Raises RunError if they are damaged.
        """
        source = self.document_source
        if isinstance(source, np.ndarray):
            return source
        offsets = np.fromfile(_local(source), OFFSET_DTYPE)
        self._check_offsets(offsets[None], np.zeros(1, np.int64))
        if (offsets[0], offsets[-1]) != (0, self.num_tokens):
            raise RunError(
                f"{_name(source)}: damaged: from {offsets[0]} to {offsets[-1]}, must be from 0 to {self.num_tokens}, "
                "the number of tokens; prepare the folder again"
            )
        return offsets

    def check_ids(self, ids: np.ndarray, starts: np.ndarray, vocabulary_size: int) -> None:
        """Raises RunError if one of the token windows `ids`, `[n, width]` at `starts`, is not in the vocabulary."""
        wrong = ids >= vocabulary_size
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            position = min(starts[row] + column, self.num_tokens - 1)
            raise RunError(
                f"{_name(self.token_source)}: damaged: token {position:,} has the id {ids[row, column]}, must be below "
                f"{vocabulary_size}, the size of the vocabulary; prepare the folder again"
            )

    def _check_offsets(self, offsets: np.ndarray, starts: np.ndarray) -> None:
        wrong = (offsets[:, 1:] < offsets[:, :-1]) | (offsets[:, 1:] > self.num_tokens)
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            before, offset = offsets[row, column : column + 2]
            raise RunError(
                f"{_name(self.document_source)}: damaged: offset {starts[row] + column + 1:,} is {offset}, must be "
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
        )
        for record, (tokens, documents, words) in zip(records, shard_names(records), strict=True)
    )


def _local(source: Source) -> Path:
    assert not isinstance(source, np.ndarray), "an array in memory has no file"
    return source.fetch() if isinstance(source, RemoteFile) else source


def _name(source: Source) -> str:
    return source.url if isinstance(source, RemoteFile) else str(source)


def _mapped(source: Source, dtype: np.dtype) -> np.ndarray:
    return source if isinstance(source, np.ndarray) else np.memmap(_local(source), dtype=dtype, mode="r")


def _windows(values: np.ndarray, starts: np.ndarray, width: int) -> np.ndarray:
    if (starts + width <= len(values)).all():
        return np.lib.stride_tricks.sliding_window_view(values, width)[starts]
    return values[np.minimum(starts[:, None] + np.arange(width)[None], len(values) - 1)]


def _read_windows(source: Source, dtype: np.dtype, size: int, starts: np.ndarray, width: int) -> np.ndarray:
    windows = np.empty((len(starts), width), dtype)
    buffer = memoryview(windows).cast("B")
    file = _local(source)
    descriptor = os.open(file, os.O_RDONLY)
    try:
        for row, start in enumerate(starts.tolist()):
            available = min(width, size - start)
            first = row * width * dtype.itemsize
            wanted = buffer[first : first + available * dtype.itemsize]
            if not _read_fully(descriptor, wanted, start * dtype.itemsize):
                raise RunError(f"{file}: truncated since it was opened; prepare the folder again")
            windows[row, available:] = windows[row, available - 1]
    finally:
        os.close(descriptor)
    return windows


def _read_fully(descriptor: int, buffer: memoryview, offset: int) -> bool:
    """Fills `buffer` from `offset` in the file; returns False if the file ends first. A single read may be short."""
    while buffer:
        size = os.preadv(descriptor, [buffer], offset)
        if size == 0:
            return False
        buffer, offset = buffer[size:], offset + size
    return True
