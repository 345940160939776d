"""Tokenised documents on disk: format, checksums, memory-mapped reader.

    FOLDER/tokens-00000.bin      token ids, one document after the other; uint16 or uint32, little-endian
           documents-00000.bin   uint64 [num_documents + 1], where each document of the shard starts
           …
           tokenizer/            the tokenizer they were made with
           manifest.json         written last: its presence says that the preparation is complete

With `separator="sep"` each document ends with the id of [SEP], which its offsets include.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from mlm_jax.data.encode import EncodedBlock, Separator, encode_documents, token_dtype
from mlm_jax.data.files import commit, partial_path
from mlm_jax.data.tokenizer import Tokenizer
from mlm_jax.data.wordpiece import check_text
from mlm_jax.errors import InputError

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
PROGRESS_FILE = "progress.json"
TOKENIZER_FOLDER = "tokenizer"
DEFAULT_SHARD_TOKENS = 1 << 26
_OFFSET_DTYPE = np.dtype("<u8")


@dataclass(frozen=True)
class ShardRecord:
    """What the manifest says of one shard. Sizes follow from the counts, so only the sums stand in it."""

    documents: int
    tokens: int
    tokens_sha256: str
    documents_sha256: str


@dataclass(frozen=True)
class Shard:
    """One shard; its arrays are mapped into memory when first used, and again after unpickling.

    The sources are files, or arrays for a shard in memory.
    """

    num_documents: int
    num_tokens: int
    token_source: Path | np.ndarray = field(repr=False)
    document_source: Path | np.ndarray = field(repr=False)
    dtype: np.dtype

    @cached_property
    def tokens(self) -> np.ndarray:
        """Token ids `[num_tokens]`, uint16 or uint32, read-only where they lie in a file."""
        return _mapped(self.token_source, self.dtype)

    @cached_property
    def document_offsets(self) -> np.ndarray:
        """uint64 `[num_documents + 1]`: document i is `tokens[offsets[i] : offsets[i + 1]]`."""
        return _mapped(self.document_source, _OFFSET_DTYPE)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the maps out: pickling one would copy the whole file into the pickle."""
        return {name: self.__dict__[name] for name in self.__dataclass_fields__}


@dataclass(frozen=True)
class TokenStore:
    """Tokenised documents, on disk or in memory.

    fingerprint: sha256 over everything that determines the tokens and their division into shards; it is the
    same for documents in memory and for the same documents prepared on disk with as many tokens a shard.
    """

    shards: tuple[Shard, ...]
    separator: Separator
    vocabulary_size: int
    tokenizer_fingerprint: str
    fingerprint: str

    @property
    def num_tokens(self) -> int:
        """Tokens of all shards, separators included."""
        return sum(shard.num_tokens for shard in self.shards)

    @property
    def num_documents(self) -> int:
        """Documents of all shards."""
        return sum(shard.num_documents for shard in self.shards)

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[str],
        tokenizer: Tokenizer,
        *,
        separator: Separator = "sep",
        shard_tokens: int = DEFAULT_SHARD_TOKENS,
        workers: int = 1,
    ) -> Self:
        """Tokenise `documents` in memory. Documents without a token are left out.

        Raises InputError where one is not a string or none holds a token.
        """
        if isinstance(documents, str):
            raise InputError("documents: expected a list of strings, found one string")
        shards: list[Shard] = []
        records: list[ShardRecord] = []
        parts: list[EncodedBlock] = []
        blocks = encode_documents(_checked(documents), tokenizer, separator, workers=workers)
        for part, closes_shard in shard_parts(blocks, shard_tokens):
            if part.tokens.size:
                parts.append(part)
            if closes_shard and parts:
                shard, record = _shard_in_memory(parts)
                shards.append(shard)
                records.append(record)
                parts = []
        if not shards:
            raise InputError("documents: none holds a token; expected at least one with text")
        identity = (separator, tokenizer.vocabulary_size, tokenizer.fingerprint)
        return cls(tuple(shards), *identity, content_fingerprint(*identity, records))


def open_shards(path: str | Path) -> TokenStore:
    """Open a prepared folder: read its manifest, check that the files have their sizes, map nothing yet.

    Raises InputError, naming the file, where the folder is not a complete preparation of a known version, or
    a shard is missing or cut off. The checksums are left to `verify_shards`.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    try:
        records = [ShardRecord(**record) for record in manifest["shards"]]
        store = TokenStore(
            shards=tuple(
                _open_shard(folder, i, r, manifest["vocabulary_size"]) for i, r in enumerate(records)
            ),
            separator=manifest["separator"],
            vocabulary_size=manifest["vocabulary_size"],
            tokenizer_fingerprint=manifest["tokenizer_fingerprint"],
            fingerprint=manifest["fingerprint"],
        )
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder / MANIFEST_FILE}: damaged: {error}; prepare the folder again") from error
    expected = content_fingerprint(
        store.separator, store.vocabulary_size, store.tokenizer_fingerprint, records
    )
    if store.fingerprint != expected:
        raise InputError(f"{folder / MANIFEST_FILE}: damaged: its fingerprint does not fit its content")
    return store


def verify_shards(path: str | Path) -> TokenStore:
    """Open a prepared folder and check every byte against the manifest's checksums.

    Raises InputError naming the first file that differs.
    """
    folder = Path(path)
    store = open_shards(folder)
    for index, record in enumerate(read_manifest(folder)["shards"]):
        tokens, documents = shard_paths(folder, index)
        for file, expected in ((tokens, record["tokens_sha256"]), (documents, record["documents_sha256"])):
            with file.open("rb") as stream:
                found = hashlib.file_digest(stream, "sha256").hexdigest()
            if found != expected:
                raise InputError(f"{file}: damaged: its sha256 is {found}, the manifest says {expected}")
    return store


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a complete preparation; InputError where there is none of this version."""
    file = folder / MANIFEST_FILE
    if not file.is_file():
        if (folder / PROGRESS_FILE).is_file():
            raise InputError(
                f"{folder}: the preparation is incomplete; run the same prepare_data.py command again"
            )
        raise InputError(
            f"{folder}: no prepared data here (no {MANIFEST_FILE}); make it with prepare_data.py"
        )
    try:
        manifest = json.loads(file.read_bytes())
        version = manifest["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: damaged: not a manifest ({error}); prepare the folder again") from error
    if version != FORMAT_VERSION:
        raise InputError(
            f"{file}: format version {version}, this code reads {FORMAT_VERSION}; prepare the folder again"
        )
    return manifest


def shard_paths(folder: Path, index: int) -> tuple[Path, Path]:
    """Return the paths of the tokens and of the document offsets of shard `index`."""
    return folder / f"tokens-{index:05d}.bin", folder / f"documents-{index:05d}.bin"


def check_shard_files(folder: Path, index: int, record: ShardRecord, vocabulary_size: int) -> None:
    """Raise InputError where a file of shard `index` is missing or has another size than `record` implies."""
    token_bytes = record.tokens * token_dtype(vocabulary_size).itemsize
    offset_bytes = (record.documents + 1) * _OFFSET_DTYPE.itemsize
    for file, expected in zip(shard_paths(folder, index), (token_bytes, offset_bytes), strict=True):
        if not file.is_file():
            raise InputError(f"{file}: missing; prepare the folder again")
        found = file.stat().st_size
        if found != expected:
            raise InputError(f"{file}: {found} bytes, expected {expected}; prepare the folder again")


def content_fingerprint(
    separator: Separator, vocabulary_size: int, tokenizer_fingerprint: str, records: Iterable[ShardRecord]
) -> str:
    """Sha256, in hexadecimal, over what determines the content of a store."""
    parts = [FORMAT_VERSION, separator, vocabulary_size, tokenizer_fingerprint, [asdict(r) for r in records]]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def document_offsets(document_lengths: np.ndarray) -> np.ndarray:
    """Return the uint64 offsets `[num_documents + 1]` of the documents that have tokens."""
    lengths = document_lengths[document_lengths > 0]
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]).astype(_OFFSET_DTYPE)


def shard_parts(blocks: Iterable[EncodedBlock], shard_tokens: int) -> Iterator[tuple[EncodedBlock, bool]]:
    """Divide `blocks` into shards: yield parts of them, each with whether a shard ends with it.

    A shard ends with the document that brings it to `shard_tokens` tokens, and the last with the last
    document, so the division does not depend on the blocks.
    """
    held = 0
    previous: EncodedBlock | None = None
    for block in blocks:
        if previous is not None:
            yield previous, False
        previous = None
        ends = np.cumsum(block.document_lengths)
        document, token = 0, 0
        while document < len(ends):
            last = int(np.searchsorted(ends, token + shard_tokens - held))
            stop = min(last + 1, len(ends))
            part = EncodedBlock(
                tokens=block.tokens[token : ends[stop - 1]],
                document_lengths=block.document_lengths[document:stop],
                document_characters=block.document_characters[document:stop],
            )
            held += len(part.tokens)
            document, token = stop, int(ends[stop - 1])
            if held >= shard_tokens:
                yield part, True
                held = 0
            else:
                previous = part
    if previous is not None:
        yield previous, True


class ShardWriter:
    """Writes a shard under partial names; `close` makes it appear, `discard` makes it vanish."""

    def __init__(self, folder: Path, index: int) -> None:
        """Open the token file. Memory: the document offsets of the one shard."""
        self._tokens_path, self._documents_path = shard_paths(folder, index)
        self._file = partial_path(self._tokens_path).open("wb")
        self._sha256 = hashlib.sha256()
        self._lengths: list[np.ndarray] = []
        self.num_tokens = 0

    def write(self, block: EncodedBlock) -> None:
        """Append the documents of `block`."""
        data = block.tokens.tobytes()
        self._file.write(data)
        self._sha256.update(data)
        self._lengths.append(block.document_lengths)
        self.num_tokens += len(block.tokens)

    def close(self) -> ShardRecord:
        """Put both files in place, their bytes on the disk, and return the shard's record."""
        offsets = document_offsets(np.concatenate(self._lengths))
        data = offsets.tobytes()
        with partial_path(self._documents_path).open("wb") as file:
            file.write(data)
            commit(file, self._documents_path)
        commit(self._file, self._tokens_path)
        return ShardRecord(
            documents=len(offsets) - 1,
            tokens=self.num_tokens,
            tokens_sha256=self._sha256.hexdigest(),
            documents_sha256=hashlib.sha256(data).hexdigest(),
        )

    def discard(self) -> None:
        """Remove what has been written; after `close` there is nothing to remove."""
        # On a full disk closing fails too, when it writes out what is still in memory.
        with contextlib.suppress(OSError):
            self._file.close()
        for path in (self._tokens_path, self._documents_path):
            partial_path(path).unlink(missing_ok=True)


def _checked(documents: Iterable[str]) -> Iterator[str]:
    for index, document in enumerate(documents):
        check_text(document, f"document {index}")
        yield document


def _shard_in_memory(parts: Sequence[EncodedBlock]) -> tuple[Shard, ShardRecord]:
    tokens = np.concatenate([part.tokens for part in parts])
    offsets = document_offsets(np.concatenate([part.document_lengths for part in parts]))
    hashes = (hashlib.sha256(values.tobytes()).hexdigest() for values in (tokens, offsets))
    counts = (len(offsets) - 1, len(tokens))
    return Shard(*counts, tokens, offsets, tokens.dtype), ShardRecord(*counts, *hashes)


def _open_shard(folder: Path, index: int, record: ShardRecord, vocabulary_size: int) -> Shard:
    check_shard_files(folder, index, record, vocabulary_size)
    tokens, documents = shard_paths(folder, index)
    return Shard(record.documents, record.tokens, tokens, documents, token_dtype(vocabulary_size))


def _mapped(source: Path | np.ndarray, dtype: np.dtype) -> np.ndarray:
    return np.memmap(source, dtype=dtype, mode="r") if isinstance(source, Path) else source
