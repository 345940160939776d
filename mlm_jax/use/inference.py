"""Forward passes over any number of rows of any length, with one compilation per bucket of lengths.

Rows are divided into buckets by length and padded to the bucket's length. A batch has either one row or as many as fit
a budget of tokens, so two programs per bucket suffice. Parameters are arguments, so training the model does not cause a
recompilation.

B rows, L length, K masked positions, V vocabulary, D hidden_dim.
"""

from collections import defaultdict
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
from mlm_jax.model.bert import abstract_masked_lm
from mlm_jax.model.layers import split_model

Pooling = Literal["none", "cls", "mean", "max"]

LENGTH_BUCKET = 32
_BUDGET_TOKENS = 4096
_MAX_ROWS = 64
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
        slots = _slots(max(map(len, positions)))
        for chosen, token_ids in self._batches(rows, advance):
            found = self._log_softmax(params, token_ids, _padded(positions, chosen, len(token_ids), slots))
            for index, answer in zip(chosen, np.asarray(found), strict=False):
                results[index] = finite(answer[: len(positions[index])])
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
        for chosen, token_ids in self._batches(rows, advance):
            places, ids = np.zeros((2, len(token_ids), 1), np.int32)
            places[: len(chosen), 0], ids[: len(chosen), 0] = positions[chosen], picked[chosen]
            found = np.asarray(self._pick(params, token_ids, places, ids))
            results[chosen] = finite(found[: len(chosen), 0])
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
        for chosen, token_ids in self._batches(rows, advance):
            found = np.asarray(self._hidden(params["encoder"], token_ids, depth=depth, pooling=pooling))
            for index, answer in zip(chosen, found, strict=False):
                results[index] = finite(answer[: len(rows[index])] if pooling == "none" else answer)
        return results

    def _batches(
        self, rows: Sequence[np.ndarray], advance: Advance
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields indices of rows, and these rows as int32 [B, L], with rows of padding to complete the batch."""
        buckets: dict[int, list[int]] = defaultdict(list)
        for index, row in enumerate(rows):
            length = -(-len(row) // LENGTH_BUCKET) * LENGTH_BUCKET
            buckets[min(length, self.config.max_sequence_length)].append(index)
        for length, members in buckets.items():
            full = max(1, min(_MAX_ROWS, _BUDGET_TOKENS // length))
            for first in range(0, len(members), full):
                chosen = np.array(members[first : first + full])
                token_ids = np.full((1 if len(chosen) == 1 else full, length), self.padding_id, np.int32)
                for place, index in enumerate(chosen):
                    token_ids[place, : len(rows[index])] = rows[index]
                yield chosen, token_ids
                advance(len(chosen))

    @cached_property
    def _graph(self) -> nnx.GraphDef:
        return split_model(abstract_masked_lm(self.config))[0]

    @cached_property
    def _log_softmax(self) -> Any:
        def log_softmax(params: Any, token_ids: Array, positions: Array) -> Array:
            logits = nnx.merge(self._graph, params)(token_ids, token_ids != self.padding_id, positions)
            return jax.nn.log_softmax(logits, axis=-1)

        return jax.jit(log_softmax)

    @cached_property
    def _pick(self) -> Any:
        def pick(params: Any, token_ids: Array, positions: Array, picked: Array) -> Array:
            chances = self._log_softmax(params, token_ids, positions)
            return jnp.take_along_axis(chances, picked[..., None], axis=-1)[..., 0]

        return jax.jit(pick)

    @cached_property
    def _hidden(self) -> Any:
        graph, _ = nnx.split(nnx.eval_shape(lambda: abstract_masked_lm(self.config).encoder), nnx.Param)

        @partial(jax.jit, static_argnames=("depth", "pooling"))
        def hidden(encoder: Any, token_ids: Array, depth: int | tuple[int, ...], pooling: Pooling) -> Array:
            padding_mask = token_ids != self.padding_id
            x = nnx.merge(graph, encoder)(token_ids, padding_mask, depth=depth)
            if isinstance(depth, tuple):
                x = jnp.moveaxis(x, 0, 2)
            if pooling == "none":
                return x
            if pooling == "cls":
                return x[:, 0]
            real = jnp.expand_dims(padding_mask, tuple(range(2, x.ndim)))
            if pooling == "max":
                return jnp.max(x, axis=1, where=real, initial=jnp.finfo(x.dtype).min)
            count = jnp.sum(real.astype(x.dtype), axis=1)
            return jnp.sum(x, axis=1, where=real) / jnp.maximum(count, 1.0)

        return hidden


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


def _slots(wanted: int) -> int:
    """Returns the first of 1, 4, 16, … that is at least `wanted`, so that few sizes are compiled."""
    slots = 1
    while slots < wanted:
        slots *= 4
    return slots


def _padded(positions: Sequence[np.ndarray], chosen: np.ndarray, rows: int, slots: int) -> np.ndarray:
    padded = np.zeros((rows, slots), np.int32)
    for place, index in enumerate(chosen):
        padded[place, : len(positions[index])] = positions[index]
    return padded
