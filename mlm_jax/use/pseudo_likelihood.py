"""Pseudo-log-likelihoods: each token is masked in turn and predicted from the others (Salazar et al. 2020)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mlm_jax.use.inference import Advance, Inference

# Number of rows with one masked token that are held in memory at once.
_ROWS_AT_ONCE = 4096


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
