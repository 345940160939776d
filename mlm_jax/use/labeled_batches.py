"""Texts and pairs of texts → rows of token ids → batches with targets.

B rows of a batch, L length, S texts of a row, C outputs.
"""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mlm_jax.config import BertConfig
from mlm_jax.data.permutation import permute
from mlm_jax.errors import InputError
from mlm_jax.run.reporting import say
from mlm_jax.text.tokenizer import Tokenizer
from mlm_jax.use.labels import check_count, kind_of, listed
from mlm_jax.use.packed_texts import SHORTEST_ROW, layout, packed_rows, rounded_up
from mlm_jax.vocabulary.wordpiece import check_text

# All batches have rows of this length, except where one has a longer text, or all texts fit a shorter row.
_COMMON_ROW = 128

Row = tuple[np.ndarray, np.ndarray]
"""Token ids and segment ids of a text, int32 [length] each."""


class LabeledBatch(NamedTuple):
    """Texts of one step, in packed rows."""

    token_ids: Any
    """int32 [B, L]"""
    segment_ids: Any
    """int32 [B, L]"""
    starts: Any
    """int32 [B, S]: columns where the texts of a row start; see `mlm_jax.model.packed`."""
    labels: Any
    """Targets: int32 [B, S] or float32 [B, S, C]."""
    weights: Any
    """float32 [B, S]: 0 where there is no text."""


def labeled_rows(
    texts: Any, config: BertConfig, tokenizer: Tokenizer, sequence_length: int | None, what: str = "text"
) -> list[Row]:
    """Returns the row of each text. Truncates long texts, or the longer part of a pair.

    Raises:
        InputError: a text is not a string or a pair of strings (the message has its index), the model takes no pairs,
            or `sequence_length` is out of range.

    Warns if more than 1 % of the tokens are unknown, or if a text has the name of a special token, which is read as
    ordinary text: the two texts of a pair must be given as two strings.
    """
    if sequence_length is not None:
        check_count("sequence_length", sequence_length)
    longest = config.max_sequence_length
    limit = longest if sequence_length is None else sequence_length
    between, second = np.array(tokenizer.frame.between, np.int32), tokenizer.frame.second_segment
    shortest = 4 + len(between)
    if not shortest <= limit <= longest:
        raise InputError(f"sequence_length = {limit}: must be in [{shortest}, {longest}]")
    parts = [_parts_of(text, f"{what} {index}") for index, text in enumerate(listed(texts, f"{what}s"))]
    # A model without segments tells the texts apart by the separator alone.
    if max(map(len, parts)) == 2 and 0 < config.num_segments <= second:
        raise InputError("pairs of texts: must have a model with two segments")
    encoded = iter(_encoded([text for part in parts for text in part], tokenizer, what))
    rows, cut, empty = [], 0, 0
    for part in parts:
        bodies = [next(encoded) for _ in part]
        empty += not any(map(len, bodies))
        room = limit - 2 - (len(bodies) - 1) * len(between)
        cut += sum(map(len, bodies)) > room
        while sum(map(len, bodies)) > room:
            index = int(np.argmax([len(body) for body in bodies]))
            others = sum(map(len, bodies)) - len(bodies[index])
            bodies[index] = bodies[index][: max(room - others, len(bodies[index]) // 2, 1)]
        pieces = [bodies[0], *(piece for body in bodies[1:] for piece in (between, body))]
        ends = [tokenizer.cls_token_id], [tokenizer.sep_token_id]
        token_ids = np.concatenate([ends[0], *pieces, ends[1]]).astype(np.int32)
        segment_ids = np.zeros(len(token_ids), np.int32)
        if len(bodies) == 2:
            segment_ids[1 + len(bodies[0]) + len(between) :] = second
        rows.append((token_ids, segment_ids))
    if empty:
        say(f"{empty:,} of {len(rows):,} texts have no tokens")
    if cut:
        say(f"{cut:,} of {len(rows):,} texts are longer than {limit} tokens and were truncated")
    return rows


def _encoded(texts: Sequence[str], tokenizer: Tokenizer, what: str) -> list[np.ndarray]:
    encoded = tokenizer.encode_batch(texts)
    for warning in (tokenizer.unknown_warning(texts, encoded), tokenizer.literal_warning(texts)):
        if warning:
            warnings.warn(f"{what}s: {warning}", stacklevel=2)
    return encoded


def _parts_of(text: Any, where: str) -> tuple[str, ...]:
    if isinstance(text, str):
        check_text(text, where)
        return (text,)
    text = text.tolist() if hasattr(text, "tolist") else text
    if not isinstance(text, list | tuple):
        raise InputError(f"{where}: found {kind_of(text)}: must be a string or a pair of strings")
    for part in text:
        if not isinstance(part, str):
            raise InputError(f"{where}: found {kind_of(part)} in it: must be a string or a pair of strings")
        check_text(part, where)
    if len(text) not in (1, 2):
        raise InputError(f"{where}: found {len(text)} strings: must be a string or a pair of strings")
    return tuple(text)


def labeled_batches(
    rows: Sequence[Row],
    targets: np.ndarray,
    batch_size: int,
    padding_id: int,
    longest: int,
    order: tuple[int, int],
) -> Iterator[LabeledBatch]:
    """Yields every text once, in the random order of an epoch, `order` = (seed, epoch).

    A batch has `batch_size` texts, the last one the rest. They are packed into rows of one length, at most `longest`.
    Neither the texts of a batch nor their number depends on their lengths.
    """
    lengths = [len(token_ids) for token_ids, _ in rows]
    least = min(_COMMON_ROW, rounded_up(max(lengths), SHORTEST_ROW))
    places = permute(np.arange(len(rows)), len(rows), *order)
    for first in range(0, len(rows), batch_size):
        chosen = places[first : first + batch_size]
        own = [lengths[index] for index in chosen]
        length = min(longest, rounded_up(max(own), least))
        packed = [row for _, row in packed_rows(own, length, length)]
        devices = jax.local_device_count()
        count = -(-len(packed) // devices)
        # Steps of an eighth at least, so that few sizes are compiled.
        step = 1 << max(0, count.bit_length() - 3)
        where = layout(packed, own, length, devices * step * -(-count // step))
        token_ids, segment_ids = zip(*(rows[index] for index in chosen), strict=True)
        yield LabeledBatch(
            where.fill(token_ids, padding_id),
            where.fill(segment_ids, 0),
            where.starts,
            where.spread(targets[chosen]),
            where.spread(np.ones(len(chosen), np.float32)),
        )
