"""Description of a family of encoders."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mlm_jax.config.model import BertConfig
from mlm_jax.families.conventions import Conventions, require
from mlm_jax.families.names import TORCH, Row

TOKEN_HEADS: Mapping[str, str] = {"token_classifier": "classifier", "question_answering": "qa_outputs"}
"""Modules of the heads that map each token's hidden state, by part; all families name them alike."""

TOKEN_CLASSES: Mapping[str, tuple[str, ...]] = {
    "ForTokenClassification": ("encoder", "token_classifier"),
    "ForQuestionAnswering": ("encoder", "question_answering"),
}
"""Parts of a model with such a head, by the ending of transformers' class."""


@dataclass(frozen=True)
class Family:
    """A family of encoders in transformers, whose classes begin with `class_prefix` and their tensors with `prefix`.

    `read` returns the config for the settings of a file, and raises InputError, which names the file, for one that is
    not supported. `write` inverts it. `nearest` replaces what the family's files cannot state by what they imply.
    `rows` returns the name table of a model with these parts.
    """

    name: str
    """Name in messages, such as "BERT"."""
    model_type: str
    class_prefix: str
    prefix: str
    conventions: Conventions
    """Values that the family's files can state, by the settings of a config that tell architectures apart."""
    classes: Mapping[str, tuple[str, ...]]
    """Parts of a model by the ending of transformers' class; that of the encoder alone, "Model", is last."""
    rows: Callable[[Sequence[str]], tuple[Row, ...]]
    nearest: Callable[[BertConfig], BertConfig]
    read: Callable[[str, Path, Mapping[str, Any]], BertConfig]
    write: Callable[[BertConfig], dict[str, Any]]
    token_table: str
    """Tensor of the token embedding."""
    decoder: str
    """Tensor of the output embedding, which repeats the token embedding if it is tied."""
    bias: str
    """Tensor of the bias per vocabulary entry; empty if there is none."""
    heads: tuple[str, ...]
    """Prefixes of the tensors of heads that every class names alike."""
    heads_are_shared: bool = False
    """True if classes that we do not have give other heads the same names."""
    decoder_bias: str = ""
    """Tensor that repeats `bias`, if there is one."""
    classifier: str = ""
    """Prefix of the tensors of a classifier of texts; in some classes, it classifies tokens. Empty if there is none."""
    constants: Mapping[str, Callable[[int], np.ndarray]] = field(default_factory=dict)
    """Buffers that some versions of transformers save, and their values by their number; names may have {layer}."""
    constants_are_written: bool = False
    """True if the current version misses them in a file."""
    unused: tuple[str, ...] = ()
    """Prefixes of tensors that a class with a classifier does not read."""

    def expressible(self, format_name: str, config: BertConfig) -> BertConfig:
        """Returns the nearest config that the family has. Raises InputError for another architecture."""
        return self.nearest(require(format_name, config, self.conventions, self.name))

    def table(self, parts: Sequence[str]) -> tuple[Row, ...]:
        """Returns the name table of a model with these parts, including heads for tokens."""
        found = self.rows(parts)
        for part in TOKEN_HEADS.keys() & {*parts}:
            module = TOKEN_HEADS[part]
            found = tuple(row for row in found if not row.name.startswith(f"{module}."))
            found += TORCH.linear(module, part)
        return found

    @property
    def modules(self) -> tuple[str, ...]:
        """Beginnings of the tensors of the encoder alone, such as "embeddings."."""
        own = [
            row.name.removeprefix(self.prefix) for row in self.rows([]) if row.name.startswith(self.prefix)
        ]
        return tuple({f"{name.split('.')[0]}." for name in own})

    @property
    def classifier_class(self) -> str | None:
        """Class that classifies texts, if we have its head."""
        return f"{self.class_prefix}ForSequenceClassification" if self.classifier else None

    @property
    def named_classes(self) -> dict[str, tuple[str, ...]]:
        """Parts of a model by transformers' class; that of the encoder alone is last."""
        return {self.class_prefix + ending: parts for ending, parts in self.classes.items()}
