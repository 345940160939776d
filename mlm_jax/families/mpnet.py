"""MPNet (Song et al. 2020): RoBERTa's positions without segments, and biases of attention by distance."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlm_jax.config.model import BertConfig
from mlm_jax.families.bert import read_bert
from mlm_jax.families.conventions import Conventions, but
from mlm_jax.families.family import Family
from mlm_jax.families.names import LayerNames, Row
from mlm_jax.families.roberta import CONVENTIONS, like_roberta, read_positions, rows, write_positions
from mlm_jax.families.settings import given, shared_settings

# transformers ignores the number of ranges in the config, except for the size of the table.
_RANGES = 32
_CONVENTIONS: Conventions = but(
    CONVENTIONS, num_segments=(0,), position_offset=(2,), relative_position_buckets=(_RANGES,)
)
_LAYER = LayerNames(
    query="attention.attn.q",
    key="attention.attn.k",
    value="attention.attn.v",
    output="attention.attn.o",
    attention_norm="attention.LayerNorm",
)


def _rows(parts: Any) -> tuple[Row, ...]:
    bias = Row("mpnet.encoder.relative_attention_bias.weight", "encoder/relative_bias")
    return (*rows("mpnet.", _LAYER, "", parts), bias)


def _read(file: Path, settings: Mapping[str, Any]) -> BertConfig:
    settings = given(settings, vocab_size=30_527, max_position_embeddings=512, pad_token_id=1)
    return read_bert(
        file,
        {name: value for name, value in settings.items() if name != "type_vocab_size"},
        conventions=_CONVENTIONS,
        only={"relative_attention_num_buckets": _RANGES},
        head_activation="gelu",
        **read_positions(file, settings),
    )


def _write(config: BertConfig) -> dict[str, Any]:
    settings = shared_settings(config) | write_positions(config)
    del settings["type_vocab_size"]
    return settings | {"relative_attention_num_buckets": _RANGES}


MPNET = Family(
    name="MPNet",
    model_type="mpnet",
    class_prefix="MPNet",
    prefix="mpnet.",
    conventions=_CONVENTIONS,
    rows=_rows,
    nearest=like_roberta,
    read=_read,
    write=_write,
)
