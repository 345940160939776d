"""DistilBERT (Sanh et al. 2019): BERT's encoder without segments and pooler, with other names.

In training, transformers' DistilBERT has no dropout between attention and its residual connection; ours has BERT's. Its
classifier, with a ReLU in place of tanh, is not supported.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlm_jax.config.model import BertConfig
from mlm_jax.families.bert import like_bert
from mlm_jax.families.conventions import ACTIVATIONS, BERT_CONVENTIONS, Conventions, but
from mlm_jax.families.family import TOKEN_CLASSES, Family
from mlm_jax.families.names import LayerNames, Row, buffers_of_embeddings, embedding_rows, head_rows
from mlm_jax.families.settings import activation_in, config_from_settings, given, settings_from_config

_CONVENTIONS: Conventions = but(BERT_CONVENTIONS, num_segments=(0,), pooler=(False,))
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
ROWS: tuple[Row, ...] = (
    *embedding_rows("distilbert."),
    *_LAYER.rows("distilbert."),
    *head_rows("vocab_transform", "vocab_layer_norm", "vocab_projector.weight", "vocab_projector.bias"),
)


def _nearest(config: BertConfig) -> BertConfig:
    return replace(like_bert(config), layer_norm_epsilon=_EPSILON, head_layer_norm_epsilon=_EPSILON)


def _read(format_name: str, file: Path, settings: Mapping[str, Any]) -> BertConfig:
    activation = activation_in(file, settings, "activation")
    settings = {**{_ALIASES.get(name, name): value for name, value in settings.items()}, **settings}
    return config_from_settings(
        format_name,
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
    }


DISTILBERT = Family(
    name="DistilBERT",
    model_type="distilbert",
    class_prefix="DistilBert",
    prefix="distilbert.",
    conventions=_CONVENTIONS,
    classes={"ForMaskedLM": ("encoder", "head"), **TOKEN_CLASSES, "Model": ("encoder",)},
    rows=lambda parts: ROWS,
    nearest=_nearest,
    read=_read,
    write=_write,
    token_table="distilbert.embeddings.word_embeddings.weight",
    decoder="vocab_projector.weight",
    bias="vocab_projector.bias",
    heads=("vocab_transform.", "vocab_layer_norm.", "vocab_projector."),
    constants=buffers_of_embeddings("distilbert."),
)
