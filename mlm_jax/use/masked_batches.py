"""Batches that are masked by the caller: fields, checks and loss."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array

from mlm_jax.config import BertConfig, TrainConfig
from mlm_jax.config.masking import MaskingRecipe
from mlm_jax.data.sources import resolve_masking
from mlm_jax.errors import InputError
from mlm_jax.masking.masking import MaskedTokens
from mlm_jax.model.loss import LossSums
from mlm_jax.step.train_step import StepSetup, make_setup, masked_loss
from mlm_jax.text.tokenizer import Tokenizer


class MaskedBatch(NamedTuple):
    """Rows that are already masked."""

    token_ids: Any
    """int32 [B, L]"""
    padding_mask: Any
    """bool [B, L]: True at real tokens."""
    segment_ids: Any
    """int32 [B, L], or None for a model without segments."""
    mask_positions: Any
    """int32 [B, K]"""
    labels: Any
    """int32 [B, K]: original ids at these positions."""
    mask_weights: Any
    """float32 [B, K]"""


def masked_batches(data: Any, config: BertConfig, batch_size: int) -> Iterator[MaskedBatch]:
    """Yields batches of `batch_size` rows from a mapping of arrays [N, …], or each mapping of an iterable as a batch.

    The fields are those of `MaskedBatch`. The defaults of `padding_mask`, `segment_ids` and `mask_weights` are no
    padding, one segment, and weight 1 at every position except 0, which is [CLS] and means no selection. The last batch
    of a mapping may be smaller.

    Raises:
        InputError: a field is missing, unknown, of the wrong shape, or has values outside the range of the model.
    """
    if isinstance(data, Mapping):
        whole = _checked(data, config, "batch")
        for first in range(0, len(whole.token_ids), batch_size):
            yield jax.tree.map(lambda array, first=first: array[first : first + batch_size], whole)
        return
    for number, part in enumerate(data):
        if not isinstance(part, Mapping):
            hint = "; texts must be given as a list" if isinstance(part, str) else ""
            raise InputError(
                f"batch {number}: found {type(part).__name__}: must be a mapping of arrays{hint}"
            )
        batch = _checked(part, config, f"batch {number}")
        if not len(batch.token_ids):
            raise InputError(f"batch {number}: token_ids {batch.token_ids.shape}: must have a row")
        yield batch


def endless_masked_batches(data: Any, config: BertConfig, batch_size: int) -> Iterator[MaskedBatch]:
    """Yields batches of one shape, for training: the same as `masked_batches`, again and again.

    A batch of a mapping that reaches the last row continues with the first one.

    Raises:
        InputError: as `masked_batches`, or there is no row, no position has a weight, or batches of an iterable differ
            in shape.
    """
    if isinstance(data, Mapping):
        whole = _checked(data, config, "batch")
        rows = len(whole.token_ids)
        size, first = min(batch_size, rows), 0
        _check_weights([whole] if rows else [])
        while rows:
            numbers = np.arange(first, first + size) % rows
            yield jax.tree.map(lambda array, numbers=numbers: array[numbers], whole)
            first += size
    kept: list[MaskedBatch] = []
    for batch in masked_batches(data, config, batch_size):
        if kept and jax.tree.map(np.shape, batch) != jax.tree.map(np.shape, kept[0]):
            raise InputError(
                f"batch {len(kept)}: token_ids {batch.token_ids.shape}, labels {batch.labels.shape}: must be "
                f"{kept[0].token_ids.shape} and {kept[0].labels.shape} as in the first batch"
            )
        kept.append(batch)
        yield batch
    if not kept:
        raise InputError("data: no batch: must have at least one")
    _check_weights(kept)
    while True:
        yield from kept


def _check_weights(batches: Sequence[MaskedBatch]) -> None:
    if batches and not any(batch.mask_weights.any() for batch in batches):
        raise InputError("data: no masked position has a weight: must have at least one")


def _checked(data: Mapping[str, Any], config: BertConfig, where: str) -> MaskedBatch:
    unknown = set(data) - set(MaskedBatch._fields)
    if unknown:
        raise InputError(f"{where}: no field {min(unknown)!r}: must be of {', '.join(MaskedBatch._fields)}")
    if "segment_ids" in data and not config.num_segments:
        raise InputError(
            f"{where}: segment_ids: must be omitted, because the model has model.num_segments = 0"
        )
    for name in ("token_ids", "mask_positions", "labels"):
        if name not in data:
            raise InputError(f"{where}: {name} is missing")
    token_ids = _array(data["token_ids"], f"{where}: token_ids")
    positions = _array(data["mask_positions"], f"{where}: mask_positions")
    shapes = f"{where}: token_ids {token_ids.shape}, mask_positions {positions.shape}"
    if token_ids.ndim != 2 or positions.ndim != 2 or 0 in (token_ids.shape[1], positions.shape[1]):
        raise InputError(f"{shapes}: must be [B, L] and [B, K], L and K at least 1")
    defaults = {
        "padding_mask": np.ones(token_ids.shape, bool),
        "segment_ids": np.zeros(token_ids.shape, np.int32),
        "mask_weights": positions > 0,
    }
    names = [name for name in MaskedBatch._fields if name != "segment_ids" or config.num_segments]
    arrays = {name: _array(data.get(name, defaults.get(name)), f"{where}: {name}") for name in names}
    rows, length = token_ids.shape
    if length > config.max_sequence_length:
        raise InputError(
            f"{where}: token_ids {token_ids.shape}: must have at most {config.max_sequence_length} columns"
        )
    limits = {
        "token_ids": config.vocabulary_size,
        "segment_ids": config.num_segments,
        "mask_positions": length,
        "labels": config.vocabulary_size,
    }
    for name, array in arrays.items():
        shape = (
            (rows, length)
            if name in ("token_ids", "padding_mask", "segment_ids")
            else (rows, positions.shape[1])
        )
        if array.shape != shape:
            raise InputError(f"{where}: {name} has shape {array.shape}: must be {shape}")
        limit = limits.get(name)
        if limit and (
            array.dtype.kind not in "iu" or (array.size and not 0 <= array.min() <= array.max() < limit)
        ):
            raise InputError(f"{where}: {name}: must contain integers in [0, {limit})")
    padding, weights = arrays["padding_mask"], arrays["mask_weights"]
    if padding.dtype.kind not in "biuf" or not np.isin(padding, (0, 1)).all():
        raise InputError(f"{where}: padding_mask: must contain only True and False")
    if weights.dtype.kind not in "biuf" or not (np.isfinite(weights) & (weights >= 0)).all():
        raise InputError(f"{where}: mask_weights: must contain finite numbers, at least 0")
    at_padding = (weights > 0) & ~np.take_along_axis(padding.astype(bool), arrays["mask_positions"], axis=1)
    if at_padding.any():
        row, column = np.argwhere(at_padding)[0]
        raise InputError(
            f"{where}: mask_positions[{row}, {column}] = {arrays['mask_positions'][row, column]}: is padding, so its "
            "mask_weights must be 0"
        )
    types: dict[str, Any] = {"padding_mask": bool, "mask_weights": np.float32}
    typed = {name: array.astype(types.get(name, np.int32)) for name, array in arrays.items()}
    return MaskedBatch(**{"segment_ids": None} | typed)


def _array(values: Any, where: str) -> np.ndarray:
    try:
        return np.asarray(values)
    except ValueError as error:
        raise InputError(f"{where}: has rows of different lengths: must be an array") from error


def setup_for_masked_batches(settings: TrainConfig, tokenizer: Tokenizer) -> StepSetup:
    """Returns the step's setup. Only the padding id of its masking is used, because the rows are already masked."""
    return make_setup(
        settings, resolve_masking(MaskingRecipe(), tokenizer, settings.model.max_sequence_length)
    )


def masked_batch_loss(
    setup: StepSetup, params: Any, batch: MaskedBatch, dropout_key: Array | None
) -> LossSums:
    """Returns the loss sums of a batch; without a `dropout_key` there is no dropout."""
    masked = MaskedTokens(batch.token_ids, batch.mask_positions, batch.labels, batch.mask_weights)
    return masked_loss(setup, params, masked, dropout_key, batch.segment_ids, batch.padding_mask)
