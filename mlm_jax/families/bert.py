"""BERT (Devlin et al. 2018): post-norm, learned positions, two segments, a tied head with GELU and LayerNorm.

ERNIE (Sun et al. 2019) and MegatronBERT (Shoeybi et al. 2019) have its heads; the latter normalizes before attention
and feed-forward, and not the embeddings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mlm_jax.config.model import BertConfig
from mlm_jax.families.conventions import BERT_CONVENTIONS, Conventions, but
from mlm_jax.families.family import Family
from mlm_jax.families.names import TORCH, LayerNames, Row, embedding_rows, head_rows
from mlm_jax.families.settings import (
    TRANSFORMERS_SETTINGS,
    activation_in,
    check_only,
    config_from_settings,
    encoder_activation,
    shared_settings,
)

FOR_PRETRAINING = {"ForPreTraining": ("encoder", "head", "next_sentence")}
_MEGATRON_LAYER = LayerNames(attention_norm="attention.ln", feed_forward_norm="ln")
_PRE_NORM: Conventions = but(BERT_CONVENTIONS, norm_placement=("pre",), embedding_norm=(False,))


def like_bert(config: BertConfig) -> BertConfig:
    """Returns the nearest config of a family whose head has the encoder's activation and epsilon, as BERT's has."""
    return replace(
        config,
        embedding_dropout=True,
        head_activation=encoder_activation(config),
        head_layer_norm_epsilon=config.layer_norm_epsilon,
    )


def read_bert(
    file: Path,
    settings: Mapping[str, Any],
    *,
    conventions: Conventions = BERT_CONVENTIONS,
    only: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
    **values: Any,
) -> BertConfig:
    """Returns the config for the settings of BERT or a relative, whose `values` replace BERT's.

    `only` has settings with the only values that are supported, `defaults` those that are not BERT's.

    Raises:
        InputError: a setting is invalid or not supported.
    """
    settings = {**(defaults or {}), **settings}
    check_only(file, settings, position_embedding_type="absolute", **(only or {}))
    activation, epsilon = activation_in(file, settings), settings.get("layer_norm_eps", 1e-12)
    bert = {
        "activation": activation,
        "head_activation": activation,
        "layer_norm_epsilon": epsilon,
        "head_layer_norm_epsilon": epsilon,
    }
    return config_from_settings(file, settings, TRANSFORMERS_SETTINGS, conventions, **bert | values)


def write_bert(config: BertConfig) -> dict[str, Any]:
    """Inverts `read_bert`, with BERT's conventions."""
    return shared_settings(config) | {"position_embedding_type": "absolute"}


def _rows(prefix: str, layer: LayerNames, parts: Sequence[str]) -> tuple[Row, ...]:
    head = "cls.predictions."
    return (
        *embedding_rows(prefix),
        *layer.rows(prefix),
        *TORCH.norm(f"{prefix}encoder.ln", "encoder/final_norm"),
        *TORCH.linear(f"{prefix}pooler.dense", "encoder/pooler"),
        *head_rows(
            f"{head}transform.dense", f"{head}transform.LayerNorm", f"{head}decoder.weight", f"{head}bias"
        ),
        *TORCH.linear("cls.seq_relationship", "next_sentence"),
        *TORCH.linear("classifier", "classifier"),
    )


def _family(
    name: str,
    model_type: str,
    class_prefix: str,
    prefix: str,
    conventions: Conventions = BERT_CONVENTIONS,
    layer: LayerNames = LayerNames(),  # noqa: B008 (immutable)
    only: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Family:
    return Family(
        name=name,
        model_type=model_type,
        class_prefix=class_prefix,
        prefix=prefix,
        conventions=conventions,
        more_classes=FOR_PRETRAINING,
        rows=partial(_rows, prefix, layer),
        nearest=like_bert,
        read=partial(read_bert, conventions=conventions, only=only, defaults=defaults),
        write=write_bert,
    )


BERT = _family("BERT", "bert", "Bert", "bert.")
ERNIE = _family("ERNIE", "ernie", "Ernie", "ernie.", only={"use_task_id": False})
MEGATRON_BERT = _family(
    "MegatronBERT",
    "megatron-bert",
    "MegatronBert",
    "bert.",
    _PRE_NORM,
    layer=_MEGATRON_LAYER,
    defaults={"vocab_size": 29_056, "hidden_size": 1024, "num_hidden_layers": 24}
    | {"num_attention_heads": 16, "intermediate_size": 4096},
)
