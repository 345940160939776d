"""BERT with rotary positions, and of these NomicBERT (Nussbaum et al. 2024).

NomicBERT's feed-forward is gated by SiLU, and its norms and heads alone have biases.
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
    check_only,
    config_from_settings,
    given,
    heads_in,
    rotary_base_in,
    rotary_settings,
    settings_from_config,
)

ROTARY_CONVENTIONS: Conventions = but(BERT_CONVENTIONS, positions=("rotary",))
# Published files, and those that transformers writes, have the names of the models' first authors.
NOMIC_LAYER = LayerNames(
    layer="encoder.layers.{layer}",
    query="attn.Wqkv",
    key="attn.Wqkv",
    value="attn.Wqkv",
    output="attn.out_proj",
    attention_norm="norm1",
    gate="mlp.fc12",
    up="mlp.fc11",
    down="mlp.fc2",
    feed_forward_norm="norm2",
)
_HEAD = "cls.predictions"
_TRANSFORM = f"{_HEAD}.transform"
# Settings in the files of NomicBERT's own code, which transformers ignores, and those that have only one value here.
_OLDER_NAMES: Mapping[str, str] = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_positions": "max_position_embeddings",
    "layer_norm_epsilon": "layer_norm_eps",
    "resid_pdrop": "hidden_dropout_prob",
    "attn_pdrop": "attention_probs_dropout_prob",
    "rotary_emb_base": "rope_theta",
}
_OLDER_ONLY: Mapping[str, Any] = {
    "activation_function": "swiglu",
    "rotary_emb_fraction": 1.0,
    "rotary_scaling_factor": None,
    **dict.fromkeys(("prenorm", "causal", "parallel_block", "use_rms_norm", "rotary_emb_interleaved"), False),
    **dict.fromkeys(("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias"), False),
}


def _rows(
    prefix: str,
    layer: LayerNames,
    embedding_norm: str,
    head: tuple[Row, ...],
    classifier: str,
    parts: Sequence[str],
) -> tuple[Row, ...]:
    # With two layers of its own, the classifier has the pooler.
    joined = classifier != "classifier" and "classifier" in parts
    return (
        *embedding_rows(prefix, embedding_norm),
        *layer.rows(prefix),
        *TORCH.linear("classifier.dense" if joined else f"{prefix}pooler.dense", "encoder/pooler"),
        *head,
        *TORCH.linear(classifier, "classifier"),
    )


def _nearest(conventions: Conventions, config: BertConfig) -> BertConfig:
    return replace(
        config,
        embedding_dropout=True,
        head_activation="silu" if "silu" in conventions.get("head_activation", ()) else "gelu",
        head_layer_norm_epsilon=config.layer_norm_epsilon,
    )


def _read(
    conventions: Conventions,
    activation: str,
    defaults: Mapping[str, Any],
    base: float,
    file: Path,
    settings: Mapping[str, Any],
) -> BertConfig:
    check_only(file, settings, **_OLDER_ONLY)
    older = {name: settings.get(old) for old, name in _OLDER_NAMES.items()}
    settings = given(given(settings, **given(older)), **defaults)
    check_only(file, settings, hidden_act=activation)
    heads_in(file, settings)
    return config_from_settings(
        file,
        settings,
        TRANSFORMERS_SETTINGS,
        conventions,
        rotary_base=rotary_base_in(file, settings, base),
        layer_norm_epsilon=settings["layer_norm_eps"],
        head_layer_norm_epsilon=settings["layer_norm_eps"],
    )


def _write(activation: str, config: BertConfig) -> dict[str, Any]:
    stated = {"hidden_act": activation, "layer_norm_eps": config.layer_norm_epsilon}
    return settings_from_config(config, TRANSFORMERS_SETTINGS) | stated | rotary_settings(config)


def rotary_family(
    name: str,
    model_type: str,
    class_prefix: str,
    prefix: str,
    conventions: Conventions,
    activation: str,
    defaults: Mapping[str, Any],
    base: float,
    head: tuple[Row, ...],
    layer: LayerNames = NOMIC_LAYER,
    embedding_norm: str = "emb_ln",
    classifier: str = "classifier",
    absent_classes: tuple[str, ...] = (),
) -> Family:
    """Returns a family with BERT's embeddings, without positions, and with norms after each block.

    `defaults` are the library's where they are not BERT's, `base` is its rotary base. `head` is the table of the
    masked-LM head.
    """
    return Family(
        name=name,
        model_type=model_type,
        class_prefix=class_prefix,
        prefix=prefix,
        conventions=conventions,
        absent_classes=absent_classes,
        rows=partial(_rows, prefix, layer, embedding_norm, head, classifier),
        nearest=partial(_nearest, conventions),
        read=partial(_read, conventions, activation, {"layer_norm_eps": 1e-12} | dict(defaults), base),
        write=partial(_write, activation),
    )


NOMIC_BERT = rotary_family(
    "NomicBERT",
    "nomic_bert",
    "NomicBert",
    "nomic_bert.",
    but(
        ROTARY_CONVENTIONS,
        activation=("swiglu",),
        attention_biases=(False,),
        feed_forward_biases=("none",),
        head_activation=("silu",),
    ),
    "silu",
    {"vocab_size": 30_528, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    | {"max_position_embeddings": 2048},
    1000.0,
    head_rows(f"{_TRANSFORM}.dense", f"{_TRANSFORM}.layer_norm", f"{_HEAD}.decoder.weight", f"{_HEAD}.bias"),
    absent_classes=("ForQuestionAnswering",),
)
