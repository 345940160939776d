"""Work of a training step, identical for all contestants: shapes, rows, masks, and FLOPs in closed form."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from mlm_jax.config import Attention, BertConfig, Remat
from mlm_jax.config.files import load_config
from mlm_jax.config.masking import MaskingConfig, MaskingRecipe
from mlm_jax.config.presets import PRESETS
from mlm_jax.masking.masking import example_keys, mask_tokens
from mlm_jax.step.flops import train_flops_per_sequence

# From the published uncased vocabulary.
PADDING_ID, UNKNOWN_ID, CLS_ID, SEP_ID, MASK_ID = 0, 100, 101, 102, 103
FIRST_WORD_ID = 1000

MODERNBERT = "modernbert_base"

BATCHES = 4
"""Number of distinct batches given to contestants."""


@dataclass(frozen=True)
class StepWork:
    """Training of a preset on `batch_size` rows of `sequence_length` tokens, `masked` of which are predicted.

    `preset` is a built-in name, or "modernbert_base", the shape of the config of that name.
    """

    preset: str
    batch_size: int
    sequence_length: int = 128
    masked: int = 20
    real_share: float = 1.0
    """Fraction of each row that is not padding."""
    dropout_rate: float = 0.1
    attention_dropout_rate: float | None = None
    """Defaults to `dropout_rate`."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: Attention = "auto"
    """Attention implementation. This and the next two settings apply to mlm_jax only."""
    remat: Remat = "none"
    scan_unroll: int = 1
    steps: int = 4
    """Steps per round."""

    @property
    def model(self) -> BertConfig:
        """The model's config, without the pooler, which the loss does not use."""
        rate, attention_rate = self.dropout_rate, self.attention_dropout_rate
        shape = load_config(MODERNBERT).model if self.preset == MODERNBERT else PRESETS[self.preset]
        return replace(
            shape,
            pooler=False,
            max_sequence_length=max(shape.max_sequence_length, self.sequence_length),
            dropout_rate=rate,
            attention_dropout_rate=rate if attention_rate is None else attention_rate,
        )

    @property
    def masking(self) -> MaskingConfig:
        """A masking config that masks exactly `masked` positions of every row."""
        real = round(self.real_share * self.sequence_length) - 2
        return MaskingConfig(
            **vars(MaskingRecipe(mask_selection_rate=(self.masked - 0.5) / real))
            | {"mask_selection_length": self.masked},
            vocabulary_size=self.model.vocabulary_size,
            mask_token_id=MASK_ID,
            unselectable_token_ids=(PADDING_ID, UNKNOWN_ID, CLS_ID, SEP_ID),
            padding_token_id=PADDING_ID,
        )

    @property
    def flops_per_sequence(self) -> int:
        """Model FLOPs per row, including padding."""
        return self._flops(self.sequence_length)

    @property
    def real_flops_per_sequence(self) -> int:
        """Model FLOPs per row, excluding padding."""
        return self._flops(round(self.real_share * self.sequence_length))

    def _flops(self, length: int) -> int:
        return train_flops_per_sequence(self.model, length=length, masked=self.masked)


def token_rows(work: StepWork, count: int) -> np.ndarray:
    """Returns rows [CLS] … [SEP] [PAD] … of random tokens: int32 [count, length]."""
    random, real = np.random.default_rng(0), round(work.real_share * work.sequence_length)
    rows = np.full((count, work.sequence_length), PADDING_ID, np.int32)
    rows[:, 0], rows[:, real - 1] = CLS_ID, SEP_ID
    rows[:, 1 : real - 1] = random.integers(FIRST_WORD_ID, work.model.vocabulary_size, (count, real - 2))
    return rows


def write_batches(work: StepWork, file: Path, batches: int = BATCHES) -> None:
    """Writes masked rows to `file`, for contestants that do not mask."""
    rows = token_rows(work, batches * work.batch_size)
    keys = example_keys(0, 0, np.arange(len(rows)))
    masked = jax.jit(partial(mask_tokens, config=work.masking))(keys, rows)
    arrays: dict[str, Any] = {"rows": rows} | jax.device_get(masked._asdict())
    np.savez(file, **arrays)


def read_batches(file: str, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
    """Yields the batches in `file` endlessly: the arrays of `MaskedTokens`, and `rows`."""
    with np.load(file) as stored:
        arrays = dict(stored)
    starts = range(0, len(arrays["rows"]), batch_size)
    for start in cycle(starts):
        yield {name: values[start : start + batch_size] for name, values in arrays.items()}


def as_settings(work: StepWork, file: Path) -> dict[str, Any]:
    """Returns the settings passed to a contestant."""
    return {"work": asdict(work), "batches": str(file)}
