"""Texts → batches of rows that hold several texts each, so that short texts cost little padding.

A text in a row has the results that it has alone, up to rounding, because tokens attend only within their text and
positions count from its start (`mlm_jax.model.packed`). Rows have few lengths, and batches few sizes, so few programs
are compiled.

B rows, L length, S texts of a row, n texts of a batch.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

# Rows of at least this length, which several short texts share; in longer rows, attention costs more than padding.
SHORTEST_ROW = 64
# A row of L tokens has room for L / 8 texts.
_TOKENS_PER_TEXT = 8
_BUDGET_TOKENS = 4096


@dataclass(frozen=True)
class Layout:
    """Places of texts in the rows of a batch."""

    length: int
    """L"""
    starts: np.ndarray
    """int32 [B, S]: column of the first token of each text; L for a missing one, but 0 for the first of a row."""
    texts: np.ndarray
    """int [n]: indices of the texts."""
    rows: np.ndarray
    """int [n]: row of each text."""
    slots: np.ndarray
    """int [n]: number of each text in its row."""

    @property
    def firsts(self) -> np.ndarray:
        """Places of the first tokens in the flattened rows, int [n]."""
        return self.rows * self.length + self.starts[self.rows, self.slots]

    def fill(self, texts: Sequence[np.ndarray], padding: int) -> np.ndarray:
        """Returns the tokens of the texts, or other numbers of each token, as int32 [B, L]."""
        filled = np.full(len(self.starts) * self.length, padding, np.int32)
        for index, first in zip(self.texts, self.firsts, strict=True):
            filled[first : first + len(texts[index])] = texts[index]
        return filled.reshape(-1, self.length)

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Returns the value of each text at its slot, [B, S, …] of the dtype of `values`, and 0 at the others."""
        spread = np.zeros((*self.starts.shape, *values.shape[1:]), values.dtype)
        spread[self.rows, self.slots] = values[self.texts]
        return spread


def layouts(lengths: Sequence[int], longest: int) -> Iterator[Layout]:
    """Yields batches that together have every text once; `longest` is the maximum number of tokens of a row.

    A batch has rows of one length: 1, 4, 16, … of them, or as many as fit a budget of tokens.
    """
    by_length: dict[int, list[list[int]]] = defaultdict(list)
    for length, row in packed_rows(lengths, longest):
        by_length[length].append(row)
    for length, rows in by_length.items():
        full = max(1, _BUDGET_TOKENS // length)
        for first in range(0, len(rows), full):
            chosen = rows[first : first + full]
            size = 1
            while size < len(chosen):
                size *= 4
            yield layout(chosen, lengths, length, min(size, full))


def layout(rows: Sequence[Sequence[int]], lengths: Sequence[int], length: int, size: int) -> Layout:
    """Returns the layout of a batch of `size` rows of `length` tokens, the last of which may be empty.

    `rows` has the indices of the texts of each row, and `lengths` the number of tokens of each text.
    """
    starts = np.full((size, _num_slots(length)), length, np.int32)
    starts[:, 0] = 0
    for row, texts in enumerate(rows):
        starts[row, 1 : len(texts)] = np.cumsum([lengths[text] for text in texts[:-1]])
    counts = [len(texts) for texts in rows]
    return Layout(
        length,
        starts,
        np.concatenate(rows).astype(np.int64),
        np.repeat(np.arange(len(rows)), counts),
        np.concatenate([np.arange(count) for count in counts]),
    )


def _num_slots(length: int) -> int:
    return max(1, length // _TOKENS_PER_TEXT)


def packed_rows(
    lengths: Sequence[int], longest: int, shortest: int = SHORTEST_ROW
) -> list[tuple[int, list[int]]]:
    """Returns the length of each row, between `shortest` and `longest`, and the indices of its texts.

    From the longest text to the shortest, each goes to the row with the least room for it, or starts a row.
    """
    rows: list[tuple[int, list[int]]] = []
    by_room: dict[int, list[int]] = defaultdict(list)
    # Bit n is set if a row has room for n more tokens, so that the least sufficient room is found in one step.
    rooms = 0
    for index in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        wanted = lengths[index]
        sufficient = rooms >> wanted
        if sufficient:
            room = wanted + (sufficient & -sufficient).bit_length() - 1
            number = by_room[room].pop()
            if not by_room[room]:
                rooms ^= 1 << room
        else:
            room, number = min(longest, rounded_up(wanted, shortest)), len(rows)
            rows.append((room, []))
        length, texts = rows[number]
        texts.append(index)
        room -= wanted
        if room and len(texts) < _num_slots(length):
            by_room[room].append(number)
            rooms |= 1 << room
    return rows


def rounded_up(number: int, least: int) -> int:
    """Returns the first of `least`, 1.5 and 2 times that, 3 and 4, … that is at least `number`."""
    power = least
    while 2 * power <= number:
        power *= 2
    return next(size for size in (power, power * 3 // 2, 2 * power) if size >= number)
