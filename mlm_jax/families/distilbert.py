"""DistilBERT (Sanh et al. 2019): BERT's encoder without segments and pooler, with other names.

In training, transformers' DistilBERT has no dropout between attention and its residual connection; ours has BERT's. The
classifier is a dense layer with ReLU on the first token, and a linear map.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlm_jax.config.model import BertConfig
from mlm_jax.families.bert import like_bert
from mlm_jax.families.conventions import ACTIVATIONS, BERT_CONVENTIONS, Conventions, but
from mlm_jax.families.family import Family
from mlm_jax.families.names import TORCH, LayerNames, Row, embedding_rows, head_rows
from mlm_jax.families.settings import activation_in, config_from_settings, given, settings_from_config

_CONVENTIONS: Conventions = but(BERT_CONVENTIONS, num_segments=(0,))
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
# Other names, which transformers takes for the same settings.
_ALIASES = {"num_hidden_layers": "n_layers", "hidden_size": "dim", "num_attention_heads": "n_heads"}
_EPSILON = 1e-12
_LAYER = LayerNames(
    layer="transformer.layer.{layer}",
    query="attention.q_lin",
    key="attention.k_lin",
    value="attention.v_lin",
    output="attention.out_lin",
    attention_norm="sa_layer_norm",
    up="ffn.lin1",
    down="ffn.lin2",
    feed_forward_norm="output_layer_norm",
)
_ROWS: tuple[Row, ...] = (
    *embedding_rows("distilbert."),
    *_LAYER.rows("distilbert."),
    *head_rows("vocab_transform", "vocab_layer_norm", "vocab_projector.weight", "vocab_projector.bias"),
)
_CLASSIFIER_ROWS: tuple[Row, ...] = (
    *TORCH.linear("pre_classifier", "encoder/pooler"),
    *TORCH.linear("classifier", "classifier"),
)


def _nearest(config: BertConfig) -> BertConfig:
    return replace(like_bert(config), layer_norm_epsilon=_EPSILON, head_layer_norm_epsilon=_EPSILON)


def _read(file: Path, settings: Mapping[str, Any]) -> BertConfig:
    activation = activation_in(file, settings, "activation")
    settings = {**{_ALIASES.get(name, name): value for name, value in settings.items()}, **settings}
    return config_from_settings(
        file,
        given(settings, n_layers=6),
        _SETTINGS,
        _CONVENTIONS,
        activation=activation,
        head_activation=activation,
    )


def _write(config: BertConfig) -> dict[str, Any]:
    return settings_from_config(config, _SETTINGS) | {
        "activation": ACTIVATIONS[config.activation],
        "sinusoidal_pos_embds": False,
        "seq_classif_dropout": config.dropout_rate,
    }


DISTILBERT = Family(
    name="DistilBERT",
    model_type="distilbert",
    class_prefix="DistilBert",
    prefix="distilbert.",
    conventions=_CONVENTIONS,
    rows=lambda parts: _ROWS + _CLASSIFIER_ROWS if "classifier" in parts else _ROWS,
    nearest=_nearest,
    read=_read,
    write=_write,
    pooler_kind="relu",
)
