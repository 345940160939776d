"""Divides blocks of token ids into shards and writes the files of each shard."""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from mlm_jax.data.manifest import OFFSET_DTYPE, ShardRecord, shard_file_names
from mlm_jax.data.piece_digests import PieceDigests, piece_digests
from mlm_jax.data.word_bits import WordBits
from mlm_jax.files.atomic import commit, new_file, partial_path
from mlm_jax.text.encode import EncodedBlock


def document_offsets(document_lengths: np.ndarray) -> np.ndarray:
    """Returns the uint64 offsets `[num_documents + 1]` of the documents that have tokens."""
    lengths = document_lengths[document_lengths > 0]
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]).astype(OFFSET_DTYPE)


def shard_parts(blocks: Iterable[EncodedBlock], shard_tokens: int) -> Iterator[tuple[EncodedBlock, bool]]:
    """Divides `blocks` into shards: yields (part of a block, True if it ends a shard).

    A shard ends with the document that brings it to `shard_tokens` tokens or with the last document, so the
    division does not depend on the blocks.
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
                continues_word=None
                if block.continues_word is None
                else block.continues_word[token : ends[stop - 1]],
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
    """Writes a shard to temporary files; `close` renames them, `discard` removes them."""

    def __init__(self, folder: Path, index: int) -> None:
        """Opens the token file. The document offsets and words of the shard stay in memory until `close`."""
        self._tokens_path, self._documents_path, self._words_path, self._checksums_path = (
            folder / name for name in shard_file_names(index)
        )
        self._file = partial_path(self._tokens_path).open("wb")
        self._sha256, self._digests = hashlib.sha256(), PieceDigests()
        self._lengths: list[np.ndarray] = []
        self._words = WordBits()
        self.num_tokens = 0

    def write(self, block: EncodedBlock) -> None:
        """Appends the documents of `block`."""
        data = block.tokens.tobytes()
        self._file.write(data)
        self._sha256.update(data)
        self._digests.append(data)
        self._lengths.append(block.document_lengths)
        if block.continues_word is not None:
            self._words.append(block.continues_word)
        self.num_tokens += len(block.tokens)

    def close(self) -> ShardRecord:
        """Flushes the files to disk, renames them and returns the shard's record."""
        offsets = document_offsets(np.concatenate(self._lengths)).tobytes()
        words = self._words.packed().tobytes() if self._words.size else None
        checksums = self._digests.complete() + piece_digests(words or b"")
        contents = {self._documents_path: offsets, self._checksums_path: checksums}
        for path, data in (contents | ({} if words is None else {self._words_path: words})).items():
            with new_file(path) as file:
                file.write(data)
        commit(self._file, self._tokens_path)
        return ShardRecord(
            documents=len(offsets) // OFFSET_DTYPE.itemsize - 1,
            tokens=self.num_tokens,
            tokens_sha256=self._sha256.hexdigest(),
            documents_sha256=hashlib.sha256(offsets).hexdigest(),
            words_sha256=None if words is None else hashlib.sha256(words).hexdigest(),
            checksums_sha256=hashlib.sha256(checksums).hexdigest(),
        )

    def discard(self) -> None:
        """Removes the temporary file; does nothing after `close`."""
        # Closing flushes buffered bytes, which fails on a full disk.
        with contextlib.suppress(OSError):
            self._file.close()
        Path(self._file.name).unlink(missing_ok=True)
