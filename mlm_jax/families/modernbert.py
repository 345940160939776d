"""ModernBERT (Warner et al. 2024): pre-norm without biases, rotary positions, local layers, and gated feed-forward.

The first layer has no norm before its attention. Query, key and value are one tensor, and so are gate and up. In
training, transformers drops out within the feed-forward; ours after it. Published models have no dropout. A classifier
has the dense layer, activation and norm of the masked-LM head, and a linear map.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlm_jax.config.model import BertConfig
from mlm_jax.errors import InputError
from mlm_jax.families.conventions import BERT_CONVENTIONS, Conventions, but
from mlm_jax.families.family import Family
from mlm_jax.families.names import TORCH, LayerNames, Row, head_rows
from mlm_jax.families.settings import (
    SIZE_SETTINGS,
    activation_in,
    check_only,
    check_whole,
    config_from_settings,
    given,
    settings_from_config,
)

_CONVENTIONS: Conventions = but(
    BERT_CONVENTIONS,
    "local_attention_window",
    positions=("rotary",),
    norm_placement=("pre",),
    first_attention_norm=(False,),
    biases=(False,),
    activation=("geglu",),
    num_segments=(0,),
)
_SETTINGS: Mapping[str, str] = {
    **SIZE_SETTINGS,
    "mlp_dropout": "dropout_rate",
    "attention_dropout": "attention_dropout_rate",
    "tie_word_embeddings": "tie_embeddings",
}
_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 50_368,
    "num_hidden_layers": 22,
    "intermediate_size": 1152,
    "max_position_embeddings": 8192,
    "norm_eps": 1e-5,
    "local_attention": 128,
    "global_attn_every_n_layers": 3,
    "mlp_dropout": 0.0,
    "embedding_dropout": 0.0,
    "attention_dropout": 0.0,
}
_FULL, _LOCAL = "full_attention", "sliding_attention"
_BASES = {_FULL: ("global_rope_theta", 160_000.0), _LOCAL: ("local_rope_theta", 10_000.0)}
_WQKV, _WI = "attn.Wqkv", "mlp.Wi"
# Rows with one name are the parts of one tensor.
_LAYER = LayerNames(
    layer="layers.{layer}",
    query=_WQKV,
    key=_WQKV,
    value=_WQKV,
    output="attn.Wo",
    attention_norm="attn_norm",
    gate=_WI,
    up=_WI,
    down="mlp.Wo",
    feed_forward_norm="mlp_norm",
)
_ROWS: tuple[Row, ...] = (
    Row("model.embeddings.tok_embeddings.weight", "encoder/embeddings/token"),
    *TORCH.norm("model.embeddings.norm", "encoder/embeddings/norm"),
    *_LAYER.rows("model.", first_attention_norm=1),
    *TORCH.norm("model.final_norm", "encoder/final_norm"),
)
_HEAD_ROWS: tuple[Row, ...] = head_rows("head.dense", "head.norm", "decoder.weight", "decoder.bias")
_CLASSIFIER_ROWS: tuple[Row, ...] = (
    *TORCH.linear("head.dense", "encoder/pooler"),
    *TORCH.norm("head.norm", "encoder/pooler/norm"),
    *TORCH.linear("classifier", "classifier"),
)


def _layers(file: Path, settings: Mapping[str, Any]) -> int | None:
    """Returns n if every n-th layer is global, or None if all are. Raises InputError for another order."""
    every, count = settings["global_attn_every_n_layers"], settings["num_hidden_layers"]
    types = settings.get("layer_types")
    if types is None:
        types = [_LOCAL if index % every else _FULL for index in range(count)]
    elif not isinstance(types, list) or len(types) != count:
        raise InputError(f"{file}: layer_types: must be a list of num_hidden_layers = {count} names")
    else:
        # The period ends before the second global layer; with only one, it is as long as the model.
        every = next((index for index, kind in enumerate(types) if index and kind == _FULL), count)
    if types != [_LOCAL if index % every else _FULL for index in range(count)]:
        raise InputError(
            f"{file}: layer_types: must be {_FULL} in every n-th layer from the first, and {_LOCAL} in the others"
        )
    return every if _LOCAL in types else None


def _rotary_bases(file: Path, settings: Mapping[str, Any]) -> tuple[float, float]:
    """Returns the bases of global and local layers, from either form of the file. Raises InputError for scaling."""
    if settings.get("rope_scaling") is not None:
        raise InputError(f"{file}: rope_scaling is not supported: must be null")
    parameters = settings.get("rope_parameters") or {}
    if not isinstance(parameters, dict) or not {*parameters} <= {*_BASES}:
        raise InputError(f"{file}: rope_parameters: must have {' and '.join(_BASES)}, and nothing else")
    bases = []
    for kind, (older, default) in _BASES.items():
        of_kind = parameters.get(kind) or {}
        if not isinstance(of_kind, dict):
            raise InputError(f"{file}: rope_parameters.{kind}: must be an object with a rope_theta")
        if of_kind.get("rope_type", "default") != "default":
            raise InputError(f"{file}: rope_parameters.{kind}.rope_type: must be 'default'")
        base = of_kind.get("rope_theta", settings.get(older, default))
        if type(base) not in (int, float) or not base > 1:
            raise InputError(f"{file}: the rotary base of {kind} = {base!r}: must be a number above 1")
        bases.append(float(base))
    return bases[0], bases[1]


def _read(file: Path, settings: Mapping[str, Any]) -> BertConfig:
    settings = given(settings, **_DEFAULTS)
    false = ("norm_bias", "attention_bias", "mlp_bias", "classifier_bias")
    check_only(file, settings, decoder_bias=True, hidden_activation="gelu", **dict.fromkeys(false, False))
    check_whole(file, settings, "num_hidden_layers", "local_attention", "global_attn_every_n_layers")
    if settings["global_attn_every_n_layers"] == 0:
        raise InputError(f"{file}: global_attn_every_n_layers = 0: must be at least 1")
    if settings["embedding_dropout"] not in (0, settings["mlp_dropout"]):
        raise InputError(
            f"{file}: embedding_dropout = {settings['embedding_dropout']!r} is not supported: must be 0 or mlp_dropout "
            f"= {settings['mlp_dropout']!r}"
        )
    every, (base, local_base) = _layers(file, settings), _rotary_bases(file, settings)
    local: dict[str, Any] = {"local_attention_window": None}
    if every is not None:
        local = {
            "local_attention_window": settings["local_attention"],
            "global_attention_every": every,
            "local_rotary_base": None if local_base == base else local_base,
        }
    return config_from_settings(
        file,
        settings,
        _SETTINGS,
        _CONVENTIONS,
        rotary_base=base,
        head_activation=activation_in(file, settings, "classifier_activation"),
        layer_norm_epsilon=settings["norm_eps"],
        head_layer_norm_epsilon=settings["norm_eps"],
        embedding_dropout=settings["embedding_dropout"] != 0 or settings["mlp_dropout"] == 0,
        **local,
    )


def _write(config: BertConfig) -> dict[str, Any]:
    local = config.local_attention_window is not None
    every = config.global_attention_every
    local_base = config.rotary_base if config.local_rotary_base is None else config.local_rotary_base
    bases = {_FULL: config.rotary_base, _LOCAL: local_base}
    types = [_LOCAL if local and index % every else _FULL for index in range(config.num_layers)]
    # Both forms: transformers 5 reads the parameters, transformers 4 the older settings.
    return settings_from_config(config, _SETTINGS) | {
        "norm_eps": config.layer_norm_epsilon,
        "embedding_dropout": config.dropout_rate if config.embedding_dropout else 0.0,
        "classifier_dropout": config.dropout_rate,
        "hidden_activation": "gelu",
        "classifier_activation": {"gelu": "gelu", "gelu_tanh": "gelu_new"}[config.head_activation],
        **({"local_attention": config.local_attention_window} if local else {}),
        "global_attn_every_n_layers": every,
        "layer_types": types,
        "rope_parameters": {kind: {"rope_type": "default", "rope_theta": bases[kind]} for kind in bases},
        **{older: bases[kind] for kind, (older, _) in _BASES.items()},
        **dict.fromkeys(("norm_bias", "attention_bias", "mlp_bias", "classifier_bias"), False),
        "decoder_bias": True,
    }


MODERNBERT = Family(
    name="ModernBERT",
    model_type="modernbert",
    class_prefix="ModernBert",
    prefix="model.",
    conventions=_CONVENTIONS,
    absent_classes=("ForTokenClassification", "ForQuestionAnswering"),
    rows=lambda parts: _ROWS + (_CLASSIFIER_ROWS if "classifier" in parts else _HEAD_ROWS),
    nearest=lambda config: replace(config, head_layer_norm_epsilon=config.layer_norm_epsilon),
    read=_read,
    write=_write,
    heads_are_shared=True,
    pooler_kind="head",
    poolings={"cls": "cls", "mean": "mean"},
)
