"""All families, and which of them a file or a config belongs to."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlm_jax.config.model import BertConfig
from mlm_jax.errors import InputError
from mlm_jax.families.albert import ALBERT
from mlm_jax.families.bert import BERT, ERNIE, MEGATRON_BERT
from mlm_jax.families.conventions import misfits
from mlm_jax.families.distilbert import DISTILBERT
from mlm_jax.families.electra import ELECTRA
from mlm_jax.families.esm import ESM
from mlm_jax.families.eurobert import EUROBERT
from mlm_jax.families.family import Family
from mlm_jax.families.gte import GTE
from mlm_jax.families.jina import JINA_EMBEDDINGS_V3
from mlm_jax.families.modernbert import MODERNBERT
from mlm_jax.families.mpnet import MPNET
from mlm_jax.families.nomic import NOMIC_BERT
from mlm_jax.families.roberta import (
    CAMEMBERT,
    DATA2VEC_TEXT,
    ROBERTA,
    ROBERTA_PRELAYERNORM,
    XLM_ROBERTA,
    XLM_ROBERTA_XL,
)

# Of several with the same architecture, the first is the family of a config that names none.
FAMILIES: tuple[Family, ...] = (
    *(BERT, ROBERTA, DISTILBERT, ELECTRA, ALBERT, MODERNBERT, ESM, MPNET, EUROBERT, MEGATRON_BERT),
    *(
        NOMIC_BERT,
        GTE,
        JINA_EMBEDDINGS_V3,
        XLM_ROBERTA,
        CAMEMBERT,
        DATA2VEC_TEXT,
        ERNIE,
        ROBERTA_PRELAYERNORM,
        XLM_ROBERTA_XL,
    ),
)
_BY_TYPE = {family.model_type: family for family in FAMILIES}


def family_of_settings(file: Path, settings: Mapping[str, Any], architectures: list[str]) -> Family:
    """Returns the family that a config.json names.

    A file without `model_type`, as before 2021, is of the family of its class, and BERT's if it names no class.

    Raises:
        InputError: the family is not supported.
    """
    if "model_type" not in settings:
        for family in FAMILIES:
            # With what follows, because the prefix of one family may begin with that of another.
            beginnings = tuple(family.class_prefix + ending for ending in ("Model", "For", "LMHeadModel"))
            if all(name.startswith(beginnings) for name in architectures):
                return family
        raise InputError(
            f"{file}: architecture {architectures[0]} is not supported: must be BERT's, such as BertModel, or of "
            f"{', '.join(family.name for family in FAMILIES[1:])}"
        )
    named = settings["model_type"]
    if not isinstance(named, str) or named not in _BY_TYPE:
        raise InputError(
            f"{file}: model_type {named!r} is not supported: must be one of {', '.join(map(repr, _BY_TYPE))}"
        )
    return _BY_TYPE[named]


def config_of(format_name: str, file: Path, settings: Mapping[str, Any], family: Family) -> BertConfig:
    """Returns the config for the settings of a file of this family, which is written to the same type again.

    Raises:
        InputError: a setting is invalid or not supported.
    """
    config = family.config_of(format_name, file, settings)
    return config if family_of(config) is family else replace(config, model_type=family.model_type)


def family_of(config: BertConfig) -> Family:
    """Returns the family of a config: the one that it names, or the first with its architecture.

    If no family has it, returns the one with the fewest differences, whose `expressible` then names the first of them.

    Raises:
        InputError: the config names a model type that is not supported.
    """
    if config.model_type:
        if config.model_type not in _BY_TYPE:
            raise InputError(
                f"model.model_type = {config.model_type!r}: must be one of {', '.join(map(repr, _BY_TYPE))}"
            )
        return _BY_TYPE[config.model_type]

    return min(FAMILIES, key=lambda family: len(misfits(config, family.conventions)))
