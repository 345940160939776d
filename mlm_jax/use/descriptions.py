"""Descriptions of a loaded model: its shape, and the rows it was trained with."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax

from mlm_jax.config import BertConfig
from mlm_jax.config.training_record import TrainingRecord
from mlm_jax.run.reporting import say


def shape_of(config: BertConfig, params: Any) -> str:
    """Returns "2 layers, hidden_dim 128, 2 heads, 4.4 M parameters"."""
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    millions = f"{size / 1e6:.1f} M" if size >= 1e5 else f"{size:,}"
    layers = f"{config.num_layers} layer{'s' * (config.num_layers != 1)}"
    heads = f"{config.num_heads} head{'s' * (config.num_heads != 1)}"
    return f"{layers}, hidden_dim {config.hidden_dim}, {heads}, {millions} parameters"


def trained_on(training: TrainingRecord | None, length: int) -> TrainingRecord | None:
    """Returns the record of a model that was also trained on rows of `length` tokens."""
    if training is None or training.longest_rows is None:
        return training
    return replace(training, longest_rows=max(length, training.longest_rows))


class TrainedLength:
    """Reports rows that are longer than those a model was trained with, once per model."""

    def __init__(self, training: TrainingRecord | None) -> None:
        """Without a record, or if the length in it is unknown, nothing is reported."""
        self._tokens = training.longest_rows if training else None
        self._reported = False

    def check(self, rows: Sequence[Any]) -> None:
        """Prints a warning on stderr if a row is too long, unless one was printed before."""
        self.check_length(max(map(len, rows), default=0))

    def check_length(self, longest: int) -> None:
        """The same for the length of the longest row."""
        if self._tokens is None or longest <= self._tokens or self._reported:
            return
        self._reported = True
        say(
            f"warning: a row has {longest} tokens, and the model was trained with rows of at most {self._tokens}: "
            "results beyond that length are unreliable"
        )
