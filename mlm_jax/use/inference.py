"""Forward passes over any number of rows of any length, which are packed into few shapes.

A forward pass has one program per shape of a batch, and the head one per size of a batch. Parameters are arguments, so
training the model does not cause a recompilation.

B rows of a batch, L length, S texts of a row, P positions at a time, V vocabulary, D hidden_dim.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from mlm_jax.config import BertConfig
from mlm_jax.errors import RunError
from mlm_jax.model.bert import abstract_masked_lm, vocabulary_logits
from mlm_jax.model.layers import split_model
from mlm_jax.model.packed import first_of_texts, max_of_texts, mean_of_texts, texts_and_positions
from mlm_jax.use.packed_texts import Layout, layouts

Pooling = Literal["none", "cls", "mean", "max"]

# Number of positions whose probabilities are computed at once.
_POSITIONS_AT_ONCE = 64
# Number of rows with one masked token that are held in memory at once.
_ROWS_AT_ONCE = 4096

# Called with the number of rows after each batch.
Advance = Callable[[int], object]


@dataclass(frozen=True)
class Inference:
    """Compiled forward passes for models of one config."""

    config: BertConfig
    padding_id: int

    def log_probabilities(
        self,
        params: Any,
        rows: Sequence[np.ndarray],
        positions: Sequence[np.ndarray],
        advance: Advance,
    ) -> list[np.ndarray]:
        """Returns float32 [K, V] per row: log softmax over the vocabulary at its `positions` (int [K])."""
        results: list[Any] = [None] * len(rows)
        for layout, hidden in self._hidden_states(params, rows, advance):
            counts = [len(positions[text]) for text in layout.texts]
            places = np.concatenate([positions[text] for text in layout.texts])
            places = places + np.repeat(layout.firsts, counts)
            found = finite(self._at(self._log_softmax, params, hidden, places))
            ends = np.cumsum(counts)
            for text, count, end in zip(layout.texts, counts, ends, strict=True):
                results[text] = found[end - count : end]
        return results

    def picked_log_probabilities(
        self,
        params: Any,
        rows: Sequence[np.ndarray],
        positions: np.ndarray,
        picked: np.ndarray,
        advance: Advance,
    ) -> np.ndarray:
        """Returns float32 [rows]: the log-probability of the id `picked[i]` at `positions[i]` of row i."""
        results = np.empty(len(rows), np.float32)
        for layout, hidden in self._hidden_states(params, rows, advance):
            places = layout.firsts + positions[layout.texts]
            results[layout.texts] = finite(self._at(self._pick, params, hidden, places, picked[layout.texts]))
        return results

    def features(
        self,
        params: Any,
        rows: Sequence[np.ndarray],
        depth: int | tuple[int, ...],
        pooling: Pooling,
        advance: Advance,
    ) -> list[np.ndarray]:
        """Returns the hidden states after `depth` layers: float32 [tokens, D] per row, or [D] if pooled.

        Several depths add an axis before the last: [tokens, depths, D] or [depths, D].
        """
        results: list[Any] = [None] * len(rows)
        for layout, hidden in self._hidden_states(params, rows, advance, depth, pooling):
            found = np.asarray(hidden)
            for text, row, slot in zip(layout.texts, layout.rows, layout.slots, strict=True):
                start = layout.starts[row, slot]
                own = slice(start, start + len(rows[text])) if pooling == "none" else slot
                results[text] = finite(found[row, own])
        return results

    def _hidden_states(
        self,
        params: Any,
        rows: Sequence[np.ndarray],
        advance: Advance,
        depth: int | tuple[int, ...] | None = None,
        pooling: Pooling = "none",
    ) -> Iterator[tuple[Layout, Array]]:
        """Yields the places of rows in a batch and its hidden states, [B, L, …, D], or [B, S, …, D] if pooled."""
        for layout in layouts([len(row) for row in rows], self.config.max_sequence_length):
            token_ids = layout.fill(rows, self.padding_id)
            yield (
                layout,
                self._hidden(params["encoder"], token_ids, layout.starts, depth=depth, pooling=pooling),
            )
            advance(len(layout.texts))

    def _at(
        self, function: Any, params: Any, hidden: Array, places: np.ndarray, *others: np.ndarray
    ) -> np.ndarray:
        """Returns the results of `function` at places of the flattened rows, [n, …], computed P at a time."""
        found = []
        for first in range(0, max(len(places), 1), _POSITIONS_AT_ONCE):
            part = [each[first : first + _POSITIONS_AT_ONCE] for each in (places, *others)]
            missing = _POSITIONS_AT_ONCE - len(part[0])
            chosen, *rest = (np.pad(each, (0, missing)).astype(np.int32) for each in part)
            found.append(function(params, _taken(hidden, chosen), *rest))
        return np.concatenate([np.asarray(each) for each in found])[: len(places)]

    @cached_property
    def _graph(self) -> nnx.GraphDef:
        return split_model(abstract_masked_lm(self.config))[0]

    @cached_property
    def _log_softmax(self) -> Any:
        def log_softmax(params: Any, hidden: Array) -> Array:
            model = nnx.merge(self._graph, params)
            table, bias = model.output_embedding()
            logits = vocabulary_logits(model.head(hidden)[None], table, bias, model.vocabulary_size)
            return jax.nn.log_softmax(logits[0, :, : model.vocabulary_size], axis=-1)

        return jax.jit(log_softmax)

    @cached_property
    def _pick(self) -> Any:
        def pick(params: Any, hidden: Array, picked: Array) -> Array:
            chances = self._log_softmax(params, hidden)
            return jnp.take_along_axis(chances, picked[:, None], axis=-1)[:, 0]

        return jax.jit(pick)

    @cached_property
    def _hidden(self) -> Any:
        graph, _ = nnx.split(nnx.eval_shape(lambda: abstract_masked_lm(self.config).encoder), nnx.Param)

        @partial(jax.jit, static_argnames=("depth", "pooling"))
        def hidden(
            encoder: Any,
            token_ids: Array,
            starts: Array,
            depth: int | tuple[int, ...] | None,
            pooling: Pooling,
        ) -> Array:
            padding_mask = token_ids != self.padding_id
            document_ids, position_ids = texts_and_positions(starts, token_ids.shape[1])
            x = nnx.merge(graph, encoder)(
                token_ids, padding_mask, document_ids=document_ids, position_ids=position_ids, depth=depth
            )
            if isinstance(depth, tuple):
                x = jnp.moveaxis(x, 0, 2)
            if pooling == "none":
                return x
            if pooling == "cls":
                return first_of_texts(x, starts)
            of_texts = mean_of_texts if pooling == "mean" else max_of_texts
            return of_texts(x, padding_mask, starts)

        return hidden


@jax.jit
def _taken(hidden: Array, places: Array) -> Array:
    """Returns the vectors at places of the flattened rows, [P, D]."""
    return hidden.reshape(-1, hidden.shape[-1])[places]


def token_log_probabilities(
    inference: Inference,
    params: Any,
    rows: Sequence[np.ndarray],
    positions: Sequence[np.ndarray],
    mask_token_id: int,
    advance: Advance,
) -> list[np.ndarray]:
    """Returns the log-probability of the token at each position of each row, with only that position masked.

    Each row is int [length] with [CLS] and [SEP], its positions int [n], its result float64 [n].
    """
    lengths = np.array([len(places) for places in positions])
    owners = np.repeat(np.arange(len(rows)), lengths)
    places = np.concatenate([np.asarray(p, np.int64) for p in positions])
    chances = np.empty(len(owners), np.float64)
    for first in range(0, len(owners), _ROWS_AT_ONCE):
        part = slice(first, first + _ROWS_AT_ONCE)
        masked, truth = [], []
        for owner, place in zip(owners[part], places[part], strict=True):
            row = np.array(rows[owner], np.int32)
            truth.append(row[place])
            row[place] = mask_token_id
            masked.append(row)
        chances[part] = inference.picked_log_probabilities(
            params, masked, places[part], np.array(truth), advance
        )
    return np.split(chances, np.cumsum(lengths)[:-1])


def finite(values: np.ndarray) -> np.ndarray:
    """Returns `values`, results of a model. Raises RunError if one is NaN or infinite, so nothing is ranked by it."""
    if not np.isfinite(values).all():
        raise RunError(
            "the model computes NaN or infinity, because its parameters are no numbers or too large, as after "
            "training at too high a learning rate; expected an earlier checkpoint or another model"
        )
    return values
