"""Selects the documents of a preparation by a hash of their text: held-out documents, and exact duplicates."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator

_HASH_BITS = 64
_MOST_HASHES = 1 << 18


class DocumentHashes:
    """Keeps the documents of one side of a split, and counts exact duplicates among them.

    The side depends on the text alone, so duplicates are on the same side, for any number of workers and parts.

    Memory is bounded: beyond 2**18 different documents, duplicates are counted among a sample by hash, which is halved
    whenever it is full, and `duplicates` is an estimate.
    """

    def __init__(self, eval_share: float | None = None, *, held_out: bool = False) -> None:
        """Keeps all documents, or the given side: a share of `eval_share` is held out."""
        self._limit = int((eval_share or 0) * 2**_HASH_BITS)
        self._held_out = held_out
        self._everything = eval_share is None
        self._seen: set[int] = set()
        self._repeats: Counter[int] = Counter()
        self._sampling_bits = 0

    def kept(self, documents: Iterable[str]) -> Iterator[str]:
        """Yields the documents of this side."""
        for document in documents:
            digest = int.from_bytes(
                hashlib.blake2b(document.encode(), digest_size=_HASH_BITS // 8).digest(), "big"
            )
            if self._everything or (digest < self._limit) == self._held_out:
                self._count(digest)
                yield document

    @property
    def duplicates(self) -> int:
        """Number of documents so far whose text is that of an earlier one."""
        return self._repeats.total() << self._sampling_bits

    def _count(self, digest: int) -> None:
        # The low bits: the high ones select the side.
        if not self._is_sampled(digest):
            return
        if digest in self._seen:
            self._repeats[digest] += 1
            return
        self._seen.add(digest)
        while len(self._seen) > _MOST_HASHES:
            self._sampling_bits += 1
            self._seen = set(filter(self._is_sampled, self._seen))
            self._repeats = Counter(
                {seen: count for seen, count in self._repeats.items() if self._is_sampled(seen)}
            )

    def _is_sampled(self, digest: int) -> bool:
        return digest & ((1 << self._sampling_bits) - 1) == 0
