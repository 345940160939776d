"""ALBERT (Lan et al. 2019): BERT's encoder with narrower embeddings and one set of weights for all layers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlm_jax.config.model import BertConfig
from mlm_jax.errors import InputError
from mlm_jax.families.bert import FOR_PRETRAINING, like_bert, read_bert
from mlm_jax.families.conventions import BERT_CONVENTIONS, Conventions, but
from mlm_jax.families.electra import read_embedding_width
from mlm_jax.families.family import Family
from mlm_jax.families.names import TORCH, LayerNames, Row, embedding_rows, head_rows
from mlm_jax.families.settings import given, shared_settings


class _Narrower:
    """All widths of embeddings that are not those of the hidden states."""

    def __contains__(self, width: object) -> bool:
        return width is not None


_CONVENTIONS: Conventions = but(BERT_CONVENTIONS, shared_layers=(True,), embedding_dim=_Narrower())
_DEFAULTS = {
    "vocab_size": 30_000,
    "embedding_size": 128,
    "hidden_size": 4096,
    "num_attention_heads": 64,
    "intermediate_size": 16_384,
    "hidden_act": "gelu_new",
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
_LAYER = LayerNames(
    layer="encoder.albert_layer_groups.{layer}.albert_layers.0",
    query="attention.query",
    key="attention.key",
    value="attention.value",
    output="attention.dense",
    attention_norm="attention.LayerNorm",
    up="ffn",
    down="ffn_output",
    feed_forward_norm="full_layer_layer_norm",
)
ROWS: tuple[Row, ...] = (
    *embedding_rows("albert."),
    *TORCH.linear("albert.encoder.embedding_hidden_mapping_in", "encoder/embeddings/projection"),
    *_LAYER.rows("albert."),
    *TORCH.linear("albert.pooler", "encoder/pooler"),
    *head_rows(
        *("predictions.dense", "predictions.LayerNorm", "predictions.decoder.weight", "predictions.bias")
    ),
    *TORCH.linear("sop_classifier.classifier", "next_sentence"),
    *TORCH.linear("classifier", "classifier"),
)


def _read(file: Path, settings: Mapping[str, Any]) -> BertConfig:
    settings = given(settings, **_DEFAULTS)
    width = read_embedding_width(file, settings)
    if width is None:
        raise InputError(
            f"{file}: embedding_size = hidden_size = {settings['hidden_size']!r} is not supported: must differ"
        )
    only = {"num_hidden_groups": 1, "inner_group_num": 1}
    return read_bert(file, settings, conventions=_CONVENTIONS, only=only, embedding_dim=width)


def _write(config: BertConfig) -> dict[str, Any]:
    return shared_settings(config) | {
        "embedding_size": config.embedding_width,
        "num_hidden_groups": 1,
        "inner_group_num": 1,
        "classifier_dropout_prob": config.dropout_rate,
    }


ALBERT = Family(
    name="ALBERT",
    model_type="albert",
    class_prefix="Albert",
    prefix="albert.",
    conventions=_CONVENTIONS,
    more_classes=FOR_PRETRAINING,
    rows=lambda parts: ROWS,
    nearest=like_bert,
    read=_read,
    write=_write,
)
