"""DistilBERT (Sanh et al. 2019): BERT's encoder without segments and pooler, with other names.

In training, transformers' DistilBERT has no dropout between attention and its residual connection; ours has BERT's. Its
classifier, with a ReLU in place of tanh, is not supported.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from mlm_jax.config.model import BertConfig, HeadActivation
from mlm_jax.errors import InputError
from mlm_jax.families.bert import ENDINGS
from mlm_jax.families.family import Family
from mlm_jax.families.names import Row
from mlm_jax.families.settings import (
    ACTIVATIONS,
    activation_in,
    config_from_settings,
    require_bert,
    settings_from_config,
)

_SETTINGS: Mapping[str, str] = {
    "vocab_size": "vocabulary_size",
    "n_layers": "num_layers",
    "dim": "hidden_dim",
    "n_heads": "num_heads",
    "hidden_dim": "intermediate_dim",
    "max_position_embeddings": "max_sequence_length",
    "dropout": "dropout_rate",
    "attention_dropout": "attention_dropout_rate",
    "initializer_range": "initializer_stddev",
    "tie_word_embeddings": "tie_embeddings",
}
_DEFAULTS = {"n_layers": 6}
_EPSILON = 1e-12
_LAYER, _LAYERS = "distilbert.transformer.layer.{layer}", "encoder/layers"

ROWS: tuple[Row, ...] = (
    Row("distilbert.embeddings.word_embeddings.weight", "encoder/embeddings/token"),
    Row("distilbert.embeddings.position_embeddings.weight", "encoder/embeddings/position"),
    *ENDINGS.norm("distilbert.embeddings.LayerNorm", "encoder/embeddings/norm"),
    *ENDINGS.linear(f"{_LAYER}.attention.q_lin", f"{_LAYERS}/attention/query"),
    *ENDINGS.linear(f"{_LAYER}.attention.k_lin", f"{_LAYERS}/attention/key"),
    *ENDINGS.linear(f"{_LAYER}.attention.v_lin", f"{_LAYERS}/attention/value"),
    *ENDINGS.linear(f"{_LAYER}.attention.out_lin", f"{_LAYERS}/attention/output"),
    *ENDINGS.norm(f"{_LAYER}.sa_layer_norm", f"{_LAYERS}/attention_norm"),
    *ENDINGS.linear(f"{_LAYER}.ffn.lin1", f"{_LAYERS}/feed_forward/up"),
    *ENDINGS.linear(f"{_LAYER}.ffn.lin2", f"{_LAYERS}/feed_forward/down"),
    *ENDINGS.norm(f"{_LAYER}.output_layer_norm", f"{_LAYERS}/feed_forward_norm"),
    *ENDINGS.linear("vocab_transform", "head/dense"),
    *ENDINGS.norm("vocab_layer_norm", "head/norm"),
    Row("vocab_projector.bias", "head/bias"),
    Row("vocab_projector.weight", "head/output"),
)


def _expressible(format_name: str, config: BertConfig) -> BertConfig:
    if config.pooler:
        raise InputError(
            f"{format_name} cannot express model.pooler = True: must be False without segments, as in DistilBERT"
        )
    return replace(
        require_bert(format_name, config, segments=False),
        embedding_dropout=True,
        head_activation=cast(HeadActivation, config.activation),
        layer_norm_epsilon=_EPSILON,
        head_layer_norm_epsilon=_EPSILON,
    )


def _read(format_name: str, file: Path, settings: Mapping[str, Any]) -> BertConfig:
    activation = activation_in(file, settings, "activation")
    return config_from_settings(
        format_name,
        file,
        {**_DEFAULTS, **settings},
        _SETTINGS,
        num_segments=0,
        pooler=False,
        activation=activation,
        head_activation=activation,
    )


def _write(config: BertConfig) -> dict[str, Any]:
    return settings_from_config(config, _SETTINGS) | {
        "activation": ACTIVATIONS[config.activation],
        "sinusoidal_pos_embds": False,
    }


DISTILBERT = Family(
    name="DistilBERT",
    model_types=("distilbert",),
    prefix="distilbert.",
    classes={"DistilBertForMaskedLM": ("encoder", "head"), "DistilBertModel": ("encoder",)},
    rows=lambda parts: ROWS,
    fits=lambda config: config.num_segments == 0 and not config.position_offset,
    expressible=_expressible,
    read=_read,
    write=_write,
    token_table="distilbert.embeddings.word_embeddings.weight",
    decoder="vocab_projector.weight",
    bias="vocab_projector.bias",
    heads=("vocab_transform.", "vocab_layer_norm.", "vocab_projector."),
    constants={"distilbert.embeddings.position_ids": 1},
)
