"""EuroBERT (Boizard et al. 2025): Llama's layers without causality: RMSNorm, rotary positions, shared keys, SwiGLU.

The masked-LM head is the output embedding alone. The classifier has a dense layer with GELU and a bias.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlm_jax.config.model import BertConfig
from mlm_jax.families.conventions import BERT_CONVENTIONS, Conventions, but
from mlm_jax.families.family import Family
from mlm_jax.families.names import TORCH, LayerNames, Row
from mlm_jax.families.settings import (
    SIZE_SETTINGS,
    check_only,
    config_from_settings,
    given,
    heads_in,
    rotary_base_in,
    rotary_settings,
    settings_from_config,
)

_CONVENTIONS: Conventions = but(
    BERT_CONVENTIONS,
    "num_key_value_heads",
    positions=("rotary",),
    norm=("rms_norm",),
    norm_placement=("pre",),
    embedding_norm=(False,),
    biases=(False,),
    activation=("swiglu",),
    head_transform=(False,),
    num_segments=(0,),
)
_SETTINGS: Mapping[str, str] = {
    **SIZE_SETTINGS,
    "attention_dropout": "attention_dropout_rate",
    "tie_word_embeddings": "tie_embeddings",
    "rms_norm_eps": "layer_norm_epsilon",
}
_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 128_256,
    "max_position_embeddings": 8192,
    "attention_dropout": 0.0,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-5,
}
_LAYER = LayerNames(
    layer="layers.{layer}",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    output="self_attn.o_proj",
    attention_norm="input_layernorm",
    gate="mlp.gate_proj",
    up="mlp.up_proj",
    down="mlp.down_proj",
    feed_forward_norm="post_attention_layernorm",
)
_ROWS: tuple[Row, ...] = (
    Row("model.embed_tokens.weight", "encoder/embeddings/token"),
    *_LAYER.rows("model."),
    *TORCH.norm("model.norm", "encoder/final_norm"),
    Row("lm_head.weight", "head/output"),
)
_CLASSIFIER_ROWS: tuple[Row, ...] = (
    *TORCH.linear("dense", "encoder/pooler"),
    *TORCH.linear("classifier", "classifier"),
)


def _read(file: Path, settings: Mapping[str, Any]) -> BertConfig:
    settings = given(settings, **_DEFAULTS)
    check_only(file, settings, hidden_act="silu", attention_bias=False, mlp_bias=False)
    heads = heads_in(file, settings)
    groups = given(settings, num_key_value_heads=heads)["num_key_value_heads"]
    return config_from_settings(
        file,
        settings,
        _SETTINGS,
        _CONVENTIONS,
        num_key_value_heads=None if groups == heads else groups,
        rotary_base=rotary_base_in(file, settings, 10_000.0),
        dropout_rate=0.0,
    )


def _write(config: BertConfig) -> dict[str, Any]:
    return settings_from_config(config, _SETTINGS) | {
        "hidden_act": "silu",
        "num_key_value_heads": config.key_value_heads,
        "head_dim": config.head_dim,
        **rotary_settings(config),
        "attention_bias": False,
        "mlp_bias": False,
    }


EUROBERT = Family(
    name="EuroBERT",
    model_type="eurobert",
    class_prefix="EuroBert",
    prefix="model.",
    conventions=_CONVENTIONS,
    absent_classes=("ForQuestionAnswering",),
    rows=lambda parts: _ROWS + _CLASSIFIER_ROWS if "classifier" in parts else _ROWS,
    nearest=lambda config: replace(config, dropout_rate=0.0),
    read=_read,
    write=_write,
    pooler_kind="gelu",
    poolings={"late": "late", "bos": "cls", "mean": "mean"},
)
