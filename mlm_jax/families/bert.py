"""BERT (Devlin et al. 2018): post-norm, learned positions, two segments, a tied head with GELU and LayerNorm."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from mlm_jax.config.model import BertConfig, HeadActivation
from mlm_jax.errors import InputError
from mlm_jax.families.family import Family
from mlm_jax.families.names import Endings, Row
from mlm_jax.families.settings import (
    ACTIVATIONS,
    BERT_SETTINGS,
    activation_in,
    config_from_settings,
    require_bert,
    settings_from_config,
)

ENDINGS = Endings(kernel=".weight", bias=".bias", scale=".weight", offset=".bias", layout="out_in")
_SETTINGS = {**BERT_SETTINGS, "tie_word_embeddings": "tie_embeddings"}
_ONLY = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}


def encoder_rows(prefix: str) -> tuple[Row, ...]:
    """Returns the table of BERT's encoder without the pooler, for tensors that begin with `prefix`."""
    layer, layers = f"{prefix}encoder.layer.{{layer}}", "encoder/layers"
    linear, norm = ENDINGS.linear, ENDINGS.norm
    return (
        Row(f"{prefix}embeddings.word_embeddings.weight", "encoder/embeddings/token"),
        Row(f"{prefix}embeddings.position_embeddings.weight", "encoder/embeddings/position"),
        Row(f"{prefix}embeddings.token_type_embeddings.weight", "encoder/embeddings/segment"),
        *norm(f"{prefix}embeddings.LayerNorm", "encoder/embeddings/norm"),
        *linear(f"{layer}.attention.self.query", f"{layers}/attention/query"),
        *linear(f"{layer}.attention.self.key", f"{layers}/attention/key"),
        *linear(f"{layer}.attention.self.value", f"{layers}/attention/value"),
        *linear(f"{layer}.attention.output.dense", f"{layers}/attention/output"),
        *norm(f"{layer}.attention.output.LayerNorm", f"{layers}/attention_norm"),
        *linear(f"{layer}.intermediate.dense", f"{layers}/feed_forward/up"),
        *linear(f"{layer}.output.dense", f"{layers}/feed_forward/down"),
        *norm(f"{layer}.output.LayerNorm", f"{layers}/feed_forward_norm"),
    )


ROWS: tuple[Row, ...] = (
    *encoder_rows("bert."),
    *ENDINGS.linear("bert.pooler.dense", "encoder/pooler"),
    *ENDINGS.linear("cls.predictions.transform.dense", "head/dense"),
    *ENDINGS.norm("cls.predictions.transform.LayerNorm", "head/norm"),
    Row("cls.predictions.bias", "head/bias"),
    Row("cls.predictions.decoder.weight", "head/output"),
    *ENDINGS.linear("cls.seq_relationship", "next_sentence"),
    *ENDINGS.linear("classifier", "classifier"),
)


def _expressible(format_name: str, config: BertConfig) -> BertConfig:
    return replace(
        require_bert(format_name, config),
        embedding_dropout=True,
        head_activation=cast(HeadActivation, config.activation),
        head_layer_norm_epsilon=config.layer_norm_epsilon,
    )


def read_bert(format_name: str, file: Path, settings: Mapping[str, Any], **conventions: Any) -> BertConfig:
    """Returns the config for the settings of BERT or a relative, whose `conventions` replace BERT's.

    Raises:
        InputError: a setting is invalid or not supported.
    """
    for name, value in _ONLY.items():
        if (settings.get(name) or value) != value:
            raise InputError(f"{file}: {name} = {settings[name]!r} is not supported: must be {value!r}")
    activation, epsilon = activation_in(file, settings, "hidden_act"), settings.get("layer_norm_eps", 1e-12)
    bert = {
        "activation": activation,
        "head_activation": activation,
        "layer_norm_epsilon": epsilon,
        "head_layer_norm_epsilon": epsilon,
    }
    return config_from_settings(format_name, file, settings, _SETTINGS, **bert | conventions)


def write_bert(config: BertConfig) -> dict[str, Any]:
    """Inverts `read_bert`, with BERT's conventions."""
    return settings_from_config(config, _SETTINGS) | {
        "hidden_act": ACTIVATIONS[config.activation],
        "layer_norm_eps": config.layer_norm_epsilon,
        "position_embedding_type": "absolute",
    }


BERT = Family(
    name="BERT",
    model_types=("bert",),
    prefix="bert.",
    classes={
        "BertForPreTraining": ("encoder", "head", "next_sentence"),
        "BertForMaskedLM": ("encoder", "head"),
        "BertForSequenceClassification": ("encoder", "classifier"),
        "BertModel": ("encoder",),
    },
    rows=lambda parts: ROWS,
    fits=lambda config: config.num_segments > 0 and not config.position_offset,
    expressible=_expressible,
    read=read_bert,
    write=write_bert,
    token_table="bert.embeddings.word_embeddings.weight",
    decoder="cls.predictions.decoder.weight",
    decoder_bias="cls.predictions.decoder.bias",
    bias="cls.predictions.bias",
    heads=("cls.predictions.", "cls.seq_relationship."),
    classifier="classifier.",
    classifier_class="BertForSequenceClassification",
    constants={"bert.embeddings.position_ids": 1, "bert.embeddings.token_type_ids": 0},
)
