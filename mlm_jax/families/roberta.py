"""RoBERTa (Liu et al. 2019): BERT's encoder with positions from the padding id + 1, and a head of other names.

The classifier is a dense layer with tanh on the first token, and a linear map: BERT's pooler and classifier.
XLM-RoBERTa (Conneau et al. 2020), CamemBERT (Martin et al. 2020) and data2vec's text encoder (Baevski et al. 2022)
differ in their names alone; RoBERTa-PreLayerNorm (Ott et al. 2019) and XLM-RoBERTa-XL (Goyal et al. 2021) normalize
before attention and feed-forward.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mlm_jax.config.model import BertConfig
from mlm_jax.errors import InputError
from mlm_jax.families.bert import like_bert, read_bert, write_bert
from mlm_jax.families.conventions import BERT_CONVENTIONS, Conventions, but
from mlm_jax.families.family import Family
from mlm_jax.families.names import TORCH, LayerNames, Row, embedding_rows, head_rows
from mlm_jax.families.settings import activation_in, given

CONVENTIONS: Conventions = but(BERT_CONVENTIONS, position_offset=range(1, 1 << 21))
_PRE_NORM: Conventions = but(CONVENTIONS, norm_placement=("pre",))
_PRE_NORM_LAYER = LayerNames(attention_norm="attention.LayerNorm", feed_forward_norm="intermediate.LayerNorm")
_DEFAULTS = {"vocab_size": 30_522, "max_position_embeddings": 512, "pad_token_id": 1, "layer_norm_eps": 1e-12}
_XL_LAYER = LayerNames(attention_norm="attention.self_attn_layer_norm", feed_forward_norm="LayerNorm")


def classifier_rows() -> tuple[Row, ...]:
    """Returns the table of RoBERTa's classifier: a dense layer, which is our pooler, and a linear map."""
    return (
        *TORCH.linear("classifier.dense", "encoder/pooler"),
        *TORCH.linear("classifier.out_proj", "classifier"),
    )


def rows(prefix: str, layer: LayerNames, final_norm: str, parts: Sequence[str]) -> tuple[Row, ...]:
    """Returns the name table of a model with these parts."""
    pooler = TORCH.linear(f"{prefix}pooler.dense", "encoder/pooler")
    return (
        *embedding_rows(prefix),
        *layer.rows(prefix),
        *TORCH.norm(prefix + final_norm, "encoder/final_norm"),
        *head_rows("lm_head.dense", "lm_head.layer_norm", "lm_head.decoder.weight", "lm_head.bias"),
        *(classifier_rows() if "classifier" in parts else pooler),
    )


def read_positions(file: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of positions that count from the padding id + 1.

    Raises:
        InputError: they leave no room for positions.
    """
    padding, length = settings["pad_token_id"], settings["max_position_embeddings"]
    if type(padding) is not int or type(length) is not int or not 0 <= padding < length - 1:
        raise InputError(
            f"{file}: max_position_embeddings = {length!r}, pad_token_id = {padding!r}: must be whole numbers, and "
            "leave room for positions, which count from pad_token_id + 1"
        )
    return {"position_offset": padding + 1, "max_sequence_length": length - padding - 1}


def write_positions(config: BertConfig) -> dict[str, Any]:
    """Inverts `read_positions`."""
    return {
        "max_position_embeddings": config.position_offset + config.max_sequence_length,
        "pad_token_id": config.position_offset - 1,
    }


def like_roberta(config: BertConfig) -> BertConfig:
    """Returns the nearest config of a family whose head has an exact GELU, whatever the encoder's activation."""
    return replace(like_bert(config), head_activation="gelu")


def _read(
    defaults: Mapping[str, Any],
    conventions: Conventions,
    file: Path,
    settings: Mapping[str, Any],
) -> BertConfig:
    # Before null becomes a default: it names no activation.
    activation = activation_in(file, settings)
    settings = given(settings, **{**_DEFAULTS, **defaults})
    return read_bert(
        file,
        settings,
        conventions=conventions,
        activation=activation,
        head_activation="gelu",
        **read_positions(file, settings),
    )


def _write(config: BertConfig) -> dict[str, Any]:
    return write_bert(config) | write_positions(config)


def _family(
    name: str,
    model_type: str,
    class_prefix: str,
    prefix: str = "roberta.",
    conventions: Conventions = CONVENTIONS,
    layer: LayerNames = LayerNames(),  # noqa: B008 (immutable)
    final_norm: str = "encoder.LayerNorm",
    **defaults: Any,
) -> Family:
    return Family(
        name=name,
        model_type=model_type,
        class_prefix=class_prefix,
        prefix=prefix,
        conventions=conventions,
        rows=partial(rows, prefix, layer, final_norm),
        nearest=like_roberta,
        read=partial(_read, defaults, conventions),
        write=_write,
    )


ROBERTA = _family("RoBERTa", "roberta", "Roberta", vocab_size=50_265)
XLM_ROBERTA = _family("XLM-RoBERTa", "xlm-roberta", "XLMRoberta")
CAMEMBERT = _family("CamemBERT", "camembert", "Camembert")
DATA2VEC_TEXT = _family("data2vec's text encoder", "data2vec-text", "Data2VecText", "data2vec_text.")
ROBERTA_PRELAYERNORM = _family(
    "RoBERTa-PreLayerNorm",
    "roberta-prelayernorm",
    "RobertaPreLayerNorm",
    "roberta_prelayernorm.",
    conventions=_PRE_NORM,
    vocab_size=50_265,
    layer=_PRE_NORM_LAYER,
    final_norm="LayerNorm",
)
XLM_ROBERTA_XL = _family(
    "XLM-RoBERTa-XL",
    "xlm-roberta-xl",
    "XLMRobertaXL",
    conventions=but(_PRE_NORM, embedding_norm=(False,)),
    layer=_XL_LAYER,
    vocab_size=250_880,
    hidden_size=2560,
    num_hidden_layers=36,
    num_attention_heads=32,
    intermediate_size=10_240,
    max_position_embeddings=514,
    type_vocab_size=1,
    layer_norm_eps=1e-5,
)
