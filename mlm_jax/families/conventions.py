"""Conventions: the settings that tell architectures apart, and the values that a family's files can state."""

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from mlm_jax.config.model import BertConfig
from mlm_jax.errors import InputError

Conventions = Mapping[str, Container[Any]]
"""Possible values by setting; a setting that is absent may have any."""

ACTIVATIONS: Mapping[str, str] = {"gelu": "gelu", "gelu_tanh": "gelu_new"}
"""Maps our activations to transformers' names."""

_BERT = BertConfig()
BERT_CONVENTIONS: Conventions = {
    name: (getattr(_BERT, name),)
    for name in (
        *("positions", "position_offset", "relative_position_buckets", "local_attention_window"),
        *("norm", "norm_placement", "embedding_norm", "first_attention_norm", "biases"),
        *("embedding_dim", "num_key_value_heads", "mask_dropout_id", "shared_layers", "head_transform"),
        *("attention_biases", "feed_forward_biases"),
    )
} | {"activation": tuple(ACTIVATIONS), "num_segments": range(1, 1 << 21)}
"""BERT's conventions, of which other families state where they differ."""


def but(conventions: Conventions, *free: str, **changes: Container[Any]) -> Conventions:
    """Returns the conventions with `changes`, and without the settings that are `free`."""
    return {name: values for name, values in conventions.items() if name not in free} | changes


def misfits(config: BertConfig, conventions: Conventions) -> list[str]:
    """Returns the settings of a config that are not among the conventions."""
    return [name for name, values in conventions.items() if getattr(config, name) not in values]


def require(
    format_name: str, config: BertConfig, conventions: Conventions, name: str, file: Path | None = None
) -> BertConfig:
    """Returns the config unchanged.

    Raises:
        InputError: a setting is not among the conventions of `name`, whose library would compute different outputs. The
            message begins with the `file` of the config, if there is one.
    """
    for setting in misfits(config, conventions):
        values, where = conventions[setting], f"{file}: " if file else ""
        allowed = (
            " or ".join(map(repr, values))
            if isinstance(values, tuple)
            else f"at least {values[0]}"
            if isinstance(values, range)
            else "another"
        )
        raise InputError(
            f"{where}{format_name} cannot express model.{setting} = {getattr(config, setting)!r}: must be {allowed}, "
            f"as in {name}"
        )
    return config


def require_bert(format_name: str, config: BertConfig, *, tied: bool = False) -> BertConfig:
    """Returns the config unchanged.

    Raises:
        InputError: it is not BERT's. With `tied`, this includes an untied output embedding.
    """
    conventions = but(BERT_CONVENTIONS, tie_embeddings=(True,)) if tied else BERT_CONVENTIONS
    return require(format_name, config, conventions, "BERT")
