"""All families, and which of them a file or a config belongs to."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlm_jax.config.model import BertConfig
from mlm_jax.errors import InputError
from mlm_jax.families.bert import BERT
from mlm_jax.families.distilbert import DISTILBERT
from mlm_jax.families.family import Family
from mlm_jax.families.roberta import ROBERTA

FAMILIES: tuple[Family, ...] = (BERT, ROBERTA, DISTILBERT)


def family_of_settings(file: Path, settings: Mapping[str, Any], architectures: list[str]) -> Family:
    """Returns the family that a config.json names.

    A file without `model_type`, as before 2021, is of the family of its class, and BERT's if it names no class.

    Raises:
        InputError: the family is not supported.
    """
    if "model_type" not in settings:
        for family in FAMILIES:
            if all(name.startswith(family.class_prefix) for name in architectures):
                return family
        raise InputError(
            f"{file}: architecture {architectures[0]} is not supported: must be BERT's, such as BertModel, or "
            f"{' or '.join(family.name for family in FAMILIES[1:])}'s"
        )
    named = settings["model_type"]
    for family in FAMILIES:
        if named in family.model_types:
            return family
    known = ", ".join(repr(name) for family in FAMILIES for name in family.model_types)
    raise InputError(f"{file}: model_type {named!r} is not supported: must be one of {known}")


def family_of(config: BertConfig) -> Family:
    """Returns the family whose architecture a config has; BERT if none fits, whose `expressible` then says why."""
    return next((family for family in FAMILIES if family.fits(config)), BERT)
