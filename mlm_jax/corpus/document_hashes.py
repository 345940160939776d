"""Selects the documents of a preparation by a hash of their text: held-out documents, and exact duplicates."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator

_MOST_HASHES = 1 << 17


class DocumentHashes:
    """Keeps the documents of one side of a split, and counts exact duplicates among them.

    The side depends on the text alone, so duplicates are on the same side, for any number of workers and parts.

    Memory is bounded: beyond 2**17 different documents, duplicates are counted among a sample by hash, which is halved
    whenever it is full, and `duplicates` is an estimate.
    """

    def __init__(self, eval_share: float | None = None, *, held_out: bool = False) -> None:
        """Keeps all documents, or the given side: a share of `eval_share` is held out."""
        self._eval_share, self._held_out = eval_share, held_out
        self._seen: set[int] = set()
        self._repeats: Counter[int] = Counter()
        self._sampled_bits = 0
        self.left_out = 0
        """Number of documents so far that are on the other side."""

    def kept(self, documents: Iterable[str]) -> Iterator[str]:
        """Yields the documents of this side."""
        for document in documents:
            if self._eval_share is not None and (_fraction(document) < self._eval_share) != self._held_out:
                self.left_out += 1
                continue
            # Ten times faster than a hash that is the same in every process, which only the split needs.
            key = hash(document)
            if not key & self._sampled_bits:
                if key in self._seen:
                    self._repeats[key] += 1
                else:
                    self._seen.add(key)
                    if len(self._seen) > _MOST_HASHES:
                        self._halve_sample()
            yield document

    @property
    def duplicates(self) -> int:
        """Number of documents so far whose text is that of an earlier one."""
        return self._repeats.total() * (self._sampled_bits + 1)

    def _halve_sample(self) -> None:
        self._sampled_bits = 2 * self._sampled_bits + 1
        self._seen = {key for key in self._seen if not key & self._sampled_bits}
        self._repeats = Counter(
            {key: count for key, count in self._repeats.items() if not key & self._sampled_bits}
        )


def _fraction(document: str) -> float:
    """Returns a number in [0, 1), to 53 bits, that depends on the text alone."""
    digest = hashlib.blake2b(document.encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53
