"""Encodes documents to blocks of token ids with several threads, keeping their order."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mlm_jax.text.tokenizer import Tokenizer
from mlm_jax.vocabulary.wordpiece import NUM_EXAMPLES, unknown_warning

Separator = Literal["sep", "none"]

# Small, because each thread keeps the library's encodings of a block in memory and the threads share the GIL.
_BLOCK_CHARACTERS = 1 << 16
_BLOCK_DOCUMENTS = 1 << 12


@dataclass(frozen=True)
class EncodedBlock:
    """Consecutive documents as token ids.

    tokens: `[num_tokens]`, uint16 or uint32, each document followed by its separator.
    document_lengths: int64 `[num_documents]`, in tokens, including the separator; 0 for a document without
        tokens, for example one that consists of control characters.
    document_characters: int64 `[num_documents]`, in Unicode code points.
    unknown_words: a few words with unknown tokens, if more than 1 % of the tokens are unknown.
    continues_word: bool `[num_tokens]`, True for tokens that continue a word; None if the entries tell.
    """

    tokens: np.ndarray
    document_lengths: np.ndarray
    document_characters: np.ndarray
    unknown_words: tuple[str, ...] = ()
    continues_word: np.ndarray | None = None


class UnknownTokens:
    """Counts unknown tokens in text that comes in parts, and keeps a few examples of unknown words."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Starts at 0."""
        self._tokenizer = tokenizer
        self.words: list[str] = []
        self.count = self.num_tokens = 0

    def watch(self, blocks: Iterable[EncodedBlock]) -> Iterator[EncodedBlock]:
        """Yields the blocks, and counts their tokens without separators."""
        for block in blocks:
            self.count += int(np.count_nonzero(block.tokens == self._tokenizer.unknown_token_id))
            self.num_tokens += int(np.count_nonzero(block.tokens != self._tokenizer.sep_token_id))
            self._keep(block.unknown_words)
            yield block

    def count_texts(self, texts: Sequence[str], encoded: Sequence[np.ndarray]) -> None:
        """Counts the tokens of `texts`, given the ids of each text without special tokens."""
        count = sum(int(np.count_nonzero(ids == self._tokenizer.unknown_token_id)) for ids in encoded)
        self.count += count
        self.num_tokens += sum(map(len, encoded))
        if count and len(self.words) < NUM_EXAMPLES:
            self._keep(self._tokenizer.unknown_words(texts, encoded))

    def _keep(self, words: Iterable[str]) -> None:
        new = [word for word in words if word not in self.words]
        self.words += new[: NUM_EXAMPLES - len(self.words)]

    def warning(self, share: float | None = None) -> str | None:
        """Returns a warning if `share`, by default that of the blocks so far, is more than 1 %."""
        share = self.count / max(self.num_tokens, 1) if share is None else share
        return unknown_warning(share, self.words, self._tokenizer.word_length_limit)


def token_dtype(vocabulary_size: int) -> np.dtype:
    """Returns the smallest type that holds ids below `vocabulary_size`: little-endian uint16 or uint32."""
    return np.dtype("<u2" if vocabulary_size <= 1 << 16 else "<u4")


def encode_documents(
    documents: Iterable[str], tokenizer: Tokenizer, separator: Separator = "sep", *, workers: int = 1
) -> Generator[EncodedBlock]:
    """Encodes `documents` with `workers` threads and yields them in order, a few blocks ahead of the consumer.

    The `tokenizers` library releases the GIL while it encodes, so the threads run in parallel.
    """

    def encode(block: Sequence[str]) -> EncodedBlock:
        return _encode_block(block, tokenizer, separator)

    with ThreadPoolExecutor(workers) as pool:
        pending: deque[Future[EncodedBlock]] = deque()
        try:
            for block in _blocks(documents):
                pending.append(pool.submit(encode, block))
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def _blocks(documents: Iterable[str]) -> Iterator[list[str]]:
    block: list[str] = []
    characters = 0
    for document in documents:
        block.append(document)
        characters += len(document)
        if characters >= _BLOCK_CHARACTERS or len(block) == _BLOCK_DOCUMENTS:
            yield block
            block, characters = [], 0
    if block:
        yield block


def _encode_block(block: Sequence[str], tokenizer: Tokenizer, separator: Separator) -> EncodedBlock:
    if tokenizer.marks_words:
        documents, words = tokenizer.encode_batch(block), None
    else:
        documents, words = map(list, zip(*tokenizer.encode_words(block), strict=True))
    ending = np.array([tokenizer.sep_token_id] if separator == "sep" else [], dtype=np.int32)
    parts = [part for token_ids in documents if token_ids.size for part in (token_ids, ending)]
    dtype = token_dtype(tokenizer.vocabulary_size)
    lengths = np.fromiter(map(len, documents), dtype=np.int64, count=len(documents))
    tokens = np.concatenate(parts, dtype=dtype, casting="unsafe") if parts else np.empty(0, dtype)
    num_unknown = np.count_nonzero(tokens == tokenizer.unknown_token_id)
    return EncodedBlock(
        tokens=tokens,
        document_lengths=np.where(lengths > 0, lengths + len(ending), 0),
        document_characters=np.fromiter(map(len, block), dtype=np.int64, count=len(block)),
        unknown_words=tokenizer.unknown_words(block, documents) if num_unknown * 100 > len(tokens) else (),
        continues_word=None if words is None else _joined(words, len(ending)),
    )


def _joined(documents: Sequence[np.ndarray], num_separators: int) -> np.ndarray:
    """Returns bool arrays as one, with False for the separators after each that is not empty."""
    ending = np.zeros(num_separators, dtype=bool)
    parts = [part for words in documents if words.size for part in (words, ending)]
    return np.concatenate(parts) if parts else np.empty(0, dtype=bool)
