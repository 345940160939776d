"""Blocks of token ids → shards: where one ends, and its two files."""

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from mlm_jax.data.manifest import OFFSET_DTYPE, ShardRecord, shard_file_names
from mlm_jax.files import commit, new_file, partial_path
from mlm_jax.text.encode import EncodedBlock


def document_offsets(document_lengths: np.ndarray) -> np.ndarray:
    """Return the uint64 offsets `[num_documents + 1]` of the documents that have tokens."""
    lengths = document_lengths[document_lengths > 0]
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]).astype(OFFSET_DTYPE)


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
        self._tokens_path, self._documents_path = (folder / name for name in shard_file_names(index))
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
        with new_file(self._documents_path) as file:
            file.write(data)
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
        Path(self._file.name).unlink(missing_ok=True)
