"""ELECTRA (Clark et al. 2020): BERT's encoder with narrower embeddings.

The generator is a masked LM. The discriminator, an encoder of the same architecture, has a head that tells replaced
tokens from original ones, which is left out. The classifier is RoBERTa's, with a GELU in place of tanh.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlm_jax.config.model import BertConfig
from mlm_jax.families.bert import read_bert
from mlm_jax.families.conventions import BERT_CONVENTIONS, Conventions, but
from mlm_jax.families.family import Family
from mlm_jax.families.names import TORCH, LayerNames, Row, embedding_rows, head_rows
from mlm_jax.families.roberta import classifier_rows, like_roberta
from mlm_jax.families.settings import check_whole, given, shared_settings

_CONVENTIONS: Conventions = but(BERT_CONVENTIONS, "embedding_dim")
_DEFAULTS = {
    "embedding_size": 128,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
}
_ROWS: tuple[Row, ...] = (
    *embedding_rows("electra."),
    *TORCH.linear("electra.embeddings_project", "encoder/embeddings/projection"),
    *LayerNames().rows("electra."),
    *head_rows(
        *("generator_predictions.dense", "generator_predictions.LayerNorm"),
        *("generator_lm_head.weight", "generator_lm_head.bias"),
    ),
)


def read_embedding_width(file: Path, settings: Mapping[str, Any]) -> int | None:
    """Returns the width of narrower embeddings, or None. Raises InputError if it is no whole number."""
    check_whole(file, settings, "embedding_size")
    width: int = settings["embedding_size"]
    return None if width == settings["hidden_size"] else width


def _read(file: Path, settings: Mapping[str, Any]) -> BertConfig:
    settings = given(settings, **_DEFAULTS)
    return read_bert(
        file,
        settings,
        conventions=_CONVENTIONS,
        embedding_dim=read_embedding_width(file, settings),
        head_activation="gelu",
    )


def _write(config: BertConfig) -> dict[str, Any]:
    return shared_settings(config) | {"embedding_size": config.embedding_width}


ELECTRA = Family(
    name="ELECTRA",
    model_type="electra",
    class_prefix="Electra",
    prefix="electra.",
    conventions=_CONVENTIONS,
    rows=lambda parts: _ROWS + classifier_rows() if "classifier" in parts else _ROWS,
    nearest=like_roberta,
    read=_read,
    write=_write,
    pooler_kind="gelu",
)
