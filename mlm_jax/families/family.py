"""Description of a family of encoders."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os.path import commonprefix
from pathlib import Path
from typing import Any

import numpy as np

from mlm_jax.config.model import BertConfig, PoolerKind, Pooling
from mlm_jax.errors import InputError
from mlm_jax.families.conventions import Conventions, require
from mlm_jax.families.names import TORCH, Row

TOKEN_HEADS: Mapping[str, str] = {"token_classifier": "classifier", "question_answering": "qa_outputs"}
"""Modules of the heads that map each token's hidden state, by part; all families name them alike."""

CLASSES: Mapping[str, tuple[str, ...]] = {
    "ForMaskedLM": ("encoder", "head"),
    "ForSequenceClassification": ("encoder", "classifier"),
    "ForTokenClassification": ("encoder", "token_classifier"),
    "ForQuestionAnswering": ("encoder", "question_answering"),
    "Model": ("encoder",),
}
"""Parts of a model by the ending of transformers' class; that of the encoder alone, "Model", is last."""

EMBEDDING_BUFFERS: Mapping[str, Callable[[int], np.ndarray]] = {
    "embeddings.position_ids": np.arange,
    "embeddings.token_type_ids": np.zeros,
}
"""Buffers that transformers 4 saved with the embeddings, and their values by their number."""

_POOLING = "classifier_pooling"


@dataclass(frozen=True, kw_only=True)
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
    rows: Callable[[Sequence[str]], tuple[Row, ...]]
    nearest: Callable[[BertConfig], BertConfig]
    read: Callable[[Path, Mapping[str, Any]], BertConfig]
    write: Callable[[BertConfig], dict[str, Any]]
    more_classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Parts of a model by the ending of its class, of classes that `CLASSES` has not."""
    absent_classes: tuple[str, ...] = ()
    """Endings in `CLASSES` of classes that transformers or mlm_jax do not have."""
    heads_are_shared: bool = False
    """True if classes that we do not have give other heads the same names."""
    decoder_has_bias: bool = True
    """True if the decoder has a bias in transformers, which is that of the head or repeats it."""
    pooler_kind: PoolerKind = "tanh"
    """Kind of the pooler of a classifier."""
    poolings: Mapping[str, Pooling] = field(default_factory=dict)
    """Inputs of the pooler by their names in a file, the default first; empty if it is always the first token."""
    buffers: Mapping[str, Callable[[int], np.ndarray]] = field(default_factory=lambda: EMBEDDING_BUFFERS)
    """Buffers of the encoder that some versions of transformers save, and their values by their number.

    Names are without `prefix`, and may have {layer}."""
    buffers_are_written: bool = False
    """True if the current version misses them in a file."""

    def expressible(self, format_name: str, config: BertConfig) -> BertConfig:
        """Returns the nearest config that the family has. Raises InputError for another architecture."""
        found = self.nearest(require(format_name, config, self.conventions, self.name))
        pooling = config.pooling if config.pooling in self.poolings.values() else "cls"
        return replace(found, pooler_kind=self.pooler_kind, pooling=pooling)

    def config_of(self, format_name: str, file: Path, settings: Mapping[str, Any]) -> BertConfig:
        """Returns the config for the settings of a file.

        Raises:
            InputError: a setting is invalid or not supported.
        """
        config = require(format_name, self.read(file, settings), self.conventions, self.name, file)
        pooling: Pooling = "cls"
        if self.poolings:
            stated = settings.get(_POOLING) or next(iter(self.poolings))
            if stated not in [*self.poolings]:
                names = " or ".join(map(repr, self.poolings))
                raise InputError(f"{file}: {_POOLING} = {stated!r} is not supported: must be {names}")
            pooling = self.poolings[stated]
        return replace(config, pooler_kind=self.pooler_kind, pooling=pooling)

    def settings_of(self, config: BertConfig) -> dict[str, Any]:
        """Inverts `config_of`. The config must be `expressible`."""
        stated = [theirs for theirs, ours in self.poolings.items() if ours == config.pooling]
        return self.write(config) | ({_POOLING: stated[0]} if stated else {})

    def table(self, parts: Sequence[str]) -> tuple[Row, ...]:
        """Returns the name table of a model with these parts, including heads for tokens."""
        found = self.rows(parts)
        for part in TOKEN_HEADS.keys() & {*parts}:
            module = TOKEN_HEADS[part]
            found = tuple(row for row in found if not row.name.startswith(f"{module}."))
            found += TORCH.linear(module, part)
        return found

    def tensor(self, path: str, parts: Sequence[str] = ()) -> str:
        """Returns the tensor of our parameter in a model with these parts; empty if there is none."""
        return next((row.name for row in self.rows(parts) if row.path == path), "")

    @property
    def token_table(self) -> str:
        """Tensor of the token embedding."""
        return self.tensor("encoder/embeddings/token")

    @property
    def decoder(self) -> str:
        """Tensor of the output embedding, which repeats the token embedding if it is tied."""
        return self.tensor("head/output")

    @property
    def bias(self) -> str:
        """Tensor of the bias per vocabulary entry; empty if there is none."""
        return self.tensor("head/bias")

    @property
    def decoder_bias(self) -> str:
        """Tensor that repeats `bias`; empty if there is none."""
        found = self.decoder.removesuffix("weight") + "bias"
        return found if self.decoder_has_bias and self.bias not in ("", found) else ""

    @property
    def heads(self) -> tuple[str, ...]:
        """Beginnings of the tensors of the masked-LM head and of the next-sentence head."""
        return self._beginnings("head") + self._beginnings("next_sentence")

    @property
    def classifier(self) -> tuple[str, ...]:
        """Beginnings of the tensors of a classifier of texts; in some classes, these classify tokens."""
        parts = ("classifier",)
        return self._beginnings("encoder", parts) + self._beginnings("classifier", parts)

    def unused(self, config: BertConfig, parts: Collection[str]) -> dict[str, str]:
        """Returns the beginnings of tensors that a model with these parts does not read, and why it does not."""
        found, pooler = {}, f"{self.prefix}pooler."
        if "classifier" in parts and not self.tensor("encoder/pooler/kernel", [*parts]).startswith(pooler):
            found[pooler] = f"not read by {self.classifier_class}"
        positions = self.tensor("encoder/embeddings/position")
        if config.positions == "rotary" and positions:
            found[positions] = "not read by a model with rotary positions"
        return found

    @property
    def modules(self) -> tuple[str, ...]:
        """Beginnings of the tensors of the encoder alone, such as "embeddings."."""
        names = (row.name for row in self.rows(()) if row.name.startswith(self.prefix))
        return tuple({f"{name.removeprefix(self.prefix).split('.')[0]}." for name in names})

    @property
    def constants(self) -> Mapping[str, Callable[[int], np.ndarray]]:
        """`buffers` by their names in a model with heads."""
        return {self.prefix + name: values_of for name, values_of in self.buffers.items()}

    @property
    def classifier_class(self) -> str:
        """Class that classifies texts."""
        return f"{self.class_prefix}ForSequenceClassification"

    @property
    def named_classes(self) -> dict[str, tuple[str, ...]]:
        """Parts of a model by transformers' class; that of the encoder alone is last."""
        return {
            self.class_prefix + ending: parts
            for ending, parts in {**self.more_classes, **CLASSES}.items()
            if ending not in self.absent_classes
        }

    def _beginnings(self, part: str, parts: Sequence[str] = ()) -> tuple[str, ...]:
        """Returns the beginnings of the tensors of a part that are outside the encoder: one, or one per module."""
        rows = (row for row in self.rows(parts) if row.path.split("/")[0] == part)
        names = [row.name for row in rows if not row.name.startswith(self.prefix)]
        common = commonprefix(names).rpartition(".")[0]  # noqa: RUF071 (cut at a dot)
        modules = [common] if common else [name.split(".")[0] for name in names]
        return tuple(dict.fromkeys(f"{module}." for module in modules))
