"""ESM-1b and ESM-2 (Rives et al. 2021; Lin et al. 2022): encoders of protein sequences, normalized before each block.

ESM-2 has rotary positions, ESM-1b learned ones and normalized embeddings. Both drop the mask token's embedding. The
head that predicts contacts is kept, not used. transformers applies no dropout to the embeddings.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mlm_jax.config.model import BertConfig
from mlm_jax.errors import InputError
from mlm_jax.families.conventions import BERT_CONVENTIONS, Conventions, but
from mlm_jax.families.family import Family
from mlm_jax.families.names import TORCH, LayerNames, Row
from mlm_jax.families.roberta import like_roberta, read_positions, rows, write_positions
from mlm_jax.families.settings import (
    TRANSFORMERS_SETTINGS,
    check_only,
    check_whole,
    config_from_settings,
    given,
    settings_from_config,
)

_BASE = 10_000.0
_FREE = ("position_offset", "embedding_norm", "mask_dropout_id")
_CONVENTIONS: Conventions = but(
    BERT_CONVENTIONS,
    *_FREE,
    positions=("rotary", "learned"),
    norm_placement=("pre",),
    num_segments=(0,),
    activation=("gelu",),
    rotary_base=(_BASE,),
)
_LAYER = LayerNames(attention_norm="attention.LayerNorm", feed_forward_norm="LayerNorm")


def _rows(parts: Any) -> tuple[Row, ...]:
    found = rows("esm.", _LAYER, "encoder.emb_layer_norm_after", parts)
    # The only norm of embeddings with another name.
    renamed = [
        row._replace(name=row.name.replace("embeddings.LayerNorm", "embeddings.layer_norm")) for row in found
    ]
    return (*renamed, *TORCH.linear("esm.contact_head.regression", "contact_head"))


def _inverse_frequencies(count: int) -> np.ndarray:
    return (1.0 / _BASE ** (np.arange(count, dtype=np.float32) / np.float32(count))).astype(np.float32)


def _read(file: Path, settings: Mapping[str, Any]) -> BertConfig:
    settings = given(
        settings,
        max_position_embeddings=1026,
        layer_norm_eps=1e-12,
        position_embedding_type="absolute",
        emb_layer_norm_before=False,
        token_dropout=False,
    )
    check_only(file, settings, is_folding_model=False, rope_theta=_BASE, hidden_act="gelu")
    if type(settings["token_dropout"]) is not bool:
        raise InputError(f"{file}: token_dropout = {settings['token_dropout']!r}: must be true or false")
    check_whole(file, settings, "pad_token_id", *(["mask_token_id"] if settings["token_dropout"] else []))
    positions = settings["position_embedding_type"]
    if positions not in ("rotary", "absolute"):
        raise InputError(
            f"{file}: position_embedding_type = {positions!r} is not supported: must be 'rotary' or 'absolute'"
        )
    learned = {"positions": "learned", **read_positions(file, settings)}
    return config_from_settings(
        file,
        {name: value for name, value in settings.items() if name != "type_vocab_size"},
        TRANSFORMERS_SETTINGS,
        _CONVENTIONS,
        **(learned if positions == "absolute" else {"positions": "rotary"}),
        embedding_norm=settings["emb_layer_norm_before"],
        embedding_dropout=False,
        mask_dropout_id=settings["mask_token_id"] if settings["token_dropout"] else None,
        layer_norm_epsilon=settings["layer_norm_eps"],
        head_layer_norm_epsilon=settings["layer_norm_eps"],
    )


def _write(config: BertConfig) -> dict[str, Any]:
    settings = settings_from_config(config, TRANSFORMERS_SETTINGS)
    del settings["type_vocab_size"]
    learned = config.positions == "learned"
    return settings | {
        "hidden_act": "gelu",
        "layer_norm_eps": config.layer_norm_epsilon,
        "position_embedding_type": "absolute" if learned else "rotary",
        "emb_layer_norm_before": config.embedding_norm,
        "token_dropout": config.mask_dropout_id is not None,
        "mask_token_id": config.mask_dropout_id,
        "is_folding_model": False,
        **(write_positions(config) if learned else {}),
    }


ESM = Family(
    name="ESM",
    model_type="esm",
    class_prefix="Esm",
    prefix="esm.",
    conventions=_CONVENTIONS,
    absent_classes=("ForQuestionAnswering",),
    rows=_rows,
    nearest=lambda config: replace(like_roberta(config), embedding_dropout=False),
    read=_read,
    write=_write,
    decoder_has_bias=False,
    buffers={
        "embeddings.position_ids": np.arange,
        "encoder.layer.{layer}.attention.self.rotary_embeddings.inv_freq": _inverse_frequencies,
    },
    buffers_are_written=True,
)
