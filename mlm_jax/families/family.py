"""Description of a family of encoders."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlm_jax.config.model import BertConfig
from mlm_jax.families.names import Row


@dataclass(frozen=True)
class Family:
    """A family of encoders in transformers, whose tensors begin with `prefix`.

    `read` returns the config for the settings of a file, and raises InputError, which names the file, for one that is
    not supported. `write` inverts it. `expressible` returns the nearest config that the family has, and raises
    InputError for another architecture. `rows` returns the name table of a model with these parts.
    """

    name: str
    """Name in messages, such as "BERT"."""
    model_types: tuple[str, ...]
    """Values of `model_type`; the first is written."""
    prefix: str
    classes: Mapping[str, tuple[str, ...]]
    """Parts of a model by transformers' class; that of the encoder alone is last."""
    rows: Callable[[Sequence[str]], tuple[Row, ...]]
    fits: Callable[[BertConfig], bool]
    """Returns True if a config is of this family rather than of another."""
    expressible: Callable[[str, BertConfig], BertConfig]
    read: Callable[[str, Path, Mapping[str, Any]], BertConfig]
    write: Callable[[BertConfig], dict[str, Any]]
    token_table: str
    """Tensor of the token embedding."""
    decoder: str
    """Tensor of the output embedding, which repeats the token embedding if it is tied."""
    bias: str
    """Tensor of the bias per vocabulary entry."""
    heads: tuple[str, ...]
    """Prefixes of the tensors of heads that every class names alike."""
    decoder_bias: str = ""
    """Tensor that repeats `bias`, if there is one."""
    classifier: str = ""
    """Prefix of the tensors of a classifier of texts; in some classes, it classifies tokens. Empty if there is none."""
    classifier_class: str | None = None
    constants: Mapping[str, int] = field(default_factory=dict)
    """Buffers that some versions of transformers saved, by the step between their numbers: 0 for zeros."""
    unused: tuple[str, ...] = ()
    """Prefixes of tensors that a class with a classifier does not read."""

    @property
    def modules(self) -> tuple[str, ...]:
        """Beginnings of the tensors of the encoder alone, such as "embeddings."."""
        own = [
            row.name.removeprefix(self.prefix) for row in self.rows([]) if row.name.startswith(self.prefix)
        ]
        return tuple({f"{name.split('.')[0]}." for name in own})

    @property
    def class_prefix(self) -> str:
        """Beginning of the names of the family's classes, such as "Bert"."""
        return [*self.classes][-1].removesuffix("Model")
