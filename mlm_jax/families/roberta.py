"""RoBERTa (Liu et al. 2019): BERT's encoder with positions from the padding id + 1, and a head of other names.

The classifier is a dense layer with tanh on the first token, and a linear map: BERT's pooler and classifier.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlm_jax.config.model import BertConfig
from mlm_jax.errors import InputError
from mlm_jax.families.bert import ENDINGS, encoder_rows, read_bert, write_bert
from mlm_jax.families.family import Family
from mlm_jax.families.names import Row
from mlm_jax.families.settings import activation_in, require_bert

# Where transformers' defaults differ from BERT's.
_DEFAULTS = {"vocab_size": 50_265, "max_position_embeddings": 512, "pad_token_id": 1}
_POOLER = "roberta.pooler."


def _rows(parts: Sequence[str]) -> tuple[Row, ...]:
    pooler = "classifier.dense" if "classifier" in parts else f"{_POOLER}dense"
    return (
        *encoder_rows("roberta."),
        *ENDINGS.linear(pooler, "encoder/pooler"),
        *ENDINGS.linear("lm_head.dense", "head/dense"),
        *ENDINGS.norm("lm_head.layer_norm", "head/norm"),
        Row("lm_head.bias", "head/bias"),
        Row("lm_head.decoder.weight", "head/output"),
        *ENDINGS.linear("classifier.out_proj", "classifier"),
    )


def _expressible(format_name: str, config: BertConfig) -> BertConfig:
    return replace(
        require_bert(format_name, config, position_offset=config.position_offset),
        embedding_dropout=True,
        head_activation="gelu",
        head_layer_norm_epsilon=config.layer_norm_epsilon,
    )


def _read(format_name: str, file: Path, settings: Mapping[str, Any]) -> BertConfig:
    # Before null becomes a default: it names no activation.
    activation = activation_in(file, settings, "hidden_act")
    settings = _DEFAULTS | {name: value for name, value in settings.items() if value is not None}
    padding, rows = settings["pad_token_id"], settings["max_position_embeddings"]
    if type(padding) is not int or type(rows) is not int or not 0 <= padding < rows - 1:
        raise InputError(
            f"{file}: max_position_embeddings = {rows!r}, pad_token_id = {padding!r}: must be whole numbers, and leave "
            "room for positions, which count from pad_token_id + 1"
        )
    return read_bert(
        format_name,
        file,
        settings | {"max_position_embeddings": rows - padding - 1},
        position_offset=padding + 1,
        activation=activation,
        head_activation="gelu",
    )


def _write(config: BertConfig) -> dict[str, Any]:
    return write_bert(config) | {
        "max_position_embeddings": config.position_offset + config.max_sequence_length,
        "pad_token_id": config.position_offset - 1,
    }


ROBERTA = Family(
    name="RoBERTa",
    model_types=("roberta",),
    prefix="roberta.",
    classes={
        "RobertaForMaskedLM": ("encoder", "head"),
        "RobertaForSequenceClassification": ("encoder", "classifier"),
        "RobertaModel": ("encoder",),
    },
    rows=_rows,
    fits=lambda config: config.position_offset > 0,
    expressible=_expressible,
    read=_read,
    write=_write,
    token_table="roberta.embeddings.word_embeddings.weight",
    decoder="lm_head.decoder.weight",
    decoder_bias="lm_head.decoder.bias",
    bias="lm_head.bias",
    heads=("lm_head.",),
    classifier="classifier.",
    classifier_class="RobertaForSequenceClassification",
    constants={"roberta.embeddings.position_ids": 1, "roberta.embeddings.token_type_ids": 0},
    unused=(_POOLER,),
)
