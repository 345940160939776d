"""The formats that a model can be stored in, and which one a folder is of."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from mlm_jax.config import BertConfig
from mlm_jax.errors import InputError
from mlm_jax.formats import google_tf, hugging_face, keras_hub
from mlm_jax.formats.model_folder import StoredModel
from mlm_jax.formats.name_table import Reading
from mlm_jax.store import native_format
from mlm_jax.text.tokenizer import Tokenizer


class Format(Protocol):
    """What a module of this package offers for its format."""

    NAME: str
    DROPPED_PARTS: Mapping[str, str]
    """Parts of a model that the format has no place for: name to the reason why nothing is lost."""

    NEEDS_POOLER: bool
    """Whether a model of the format cannot be without a pooler."""

    def recognises(self, folder: Path) -> bool:
        """Whether the folder is of this format."""

    def expressible(self, config: BertConfig) -> BertConfig:
        """The nearest config that the format can say; InputError where it cannot say the architecture."""

    def read_architecture(self, folder: Path) -> tuple[BertConfig, Tokenizer]:
        """The config and the tokenizer, without a weight."""

    def read(self, folder: Path) -> Reading:
        """The model of a folder."""

    def write(self, model: StoredModel, folder: Path) -> int:
        """Write a folder's files; returns the number of tensors."""


FORMATS: Mapping[str, Format] = {
    module.NAME: module for module in (native_format, hugging_face, google_tf, keras_hub)
}


def format_of(folder: Path) -> Format:
    """The format of a folder.

    Raises:
        InputError: there is no such folder, or it is of none of the formats.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    for candidate in FORMATS.values():
        if candidate.recognises(folder):
            return candidate
    raise InputError(
        f"{folder}: not a model that is known here: expected a run folder, or a folder of "
        f"{', '.join(FORMATS)} with its config file"
    )
