"""Formats in which models are stored, and recognition of a folder's format."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol

from mlm_jax.config import BertConfig
from mlm_jax.errors import InputError
from mlm_jax.files.checksums import check_checksums
from mlm_jax.files.links import SETTINGS_SUFFIXES, check_no_broken_links
from mlm_jax.formats import google_tf, hugging_face, keras_hub
from mlm_jax.formats.hugging_face import ADAPTER_FILE
from mlm_jax.formats.model_folder import CONFIG_FILE, TOKENIZER_FOLDER, WEIGHTS_FILE, StoredModel
from mlm_jax.formats.name_table import Reading
from mlm_jax.store import native_format
from mlm_jax.vocabulary.files import TOKENIZER_FILES

_TOKENIZER_FILES = [name for name in TOKENIZER_FILES if name != "special_tokens_map.json"]
# Files that we write into models, before their checksums. Others may be added later, such as README.md.
_WRITTEN = (
    *(CONFIG_FILE, "bert_config.json", "metadata.json", "preprocessor.json", "task.json", "certificate.json"),
    *(WEIGHTS_FILE, "model.weights.h5", "task.weights.h5", "bert_model.ckpt.*"),
    *(*_TOKENIZER_FILES, "assets/tokenizer/*"),
    *(f"{TOKENIZER_FOLDER}/{name}" for name in _TOKENIZER_FILES),
)


class Format(Protocol):
    """The interface of a module that implements a format."""

    NAME: str
    DROPPED_PARTS: Mapping[str, str]
    """Maps parts of a model that the format does not support to the reason."""

    def recognizes(self, folder: Path) -> bool:
        """Returns True if the folder has this format."""

    def expressible(self, config: BertConfig) -> BertConfig:
        """Returns the nearest config that the format can express. Raises InputError for another architecture."""

    def poolers(self, config: BertConfig, parts: Collection[str]) -> tuple[bool, ...]:
        """Returns the possible values of `config.pooler` for an expressible model with these parts."""

    def read_architecture(self, folder: Path) -> StoredModel:
        """Reads everything but the parameters; labels are those that the files state, which may be None."""

    def read(self, folder: Path) -> Reading:
        """Reads the model of a folder."""

    def write(self, model: StoredModel, folder: Path) -> int:
        """Writes a folder's files and returns the number of tensors."""


FORMATS: Mapping[str, Format] = {
    module.NAME: module for module in (native_format, hugging_face, google_tf, keras_hub)
}


def read_model(folder: Path) -> Reading:
    """Reads the model of a folder of any format.

    Raises:
        InputError: there is no such folder, its format is unknown, a file differs from its checksum, or see `read` of
            its format.
    """
    found = format_of(folder)
    check_checksums(folder, complete=True, written=_WRITTEN)
    return found.read(folder)


def read_architecture(folder: Path) -> StoredModel:
    """Reads the model of a folder of any format without its parameters; the folder may lack weights.

    Raises:
        InputError: see `read_model`.
    """
    found = format_of(folder)
    check_checksums(folder, complete=False, written=_WRITTEN)
    return found.read_architecture(folder)


def format_of(folder: Path) -> Format:
    """Returns the format of a folder.

    Raises:
        InputError: there is no such folder, or its format is unknown.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    check_no_broken_links(folder, SETTINGS_SUFFIXES)
    for candidate in FORMATS.values():
        if candidate.recognizes(folder):
            return candidate
    # sentence-transformers once stored the model in a subfolder; checkpoints of a trainer are subfolders, too.
    # The folder of a model in the cache of Hugging Face's hub has a subfolder for each revision.
    configs = [*folder.glob(f"*/{CONFIG_FILE}"), *folder.glob(f"snapshots/*/{CONFIG_FILE}")]
    inner = sorted(str(path.parent.relative_to(folder)) for path in configs)
    hint = f"; {inner[0]}/ in it has one" if inner else ""
    if (folder / ADAPTER_FILE).is_file():
        raise InputError(
            f"{folder}: an adapter of PEFT (it has {ADAPTER_FILE}): must be merged into its model with merge_and_unload"
        )
    raise InputError(
        f"{folder}: not a known model format: must be a run folder, or a folder of {', '.join(FORMATS)} "
        f"with its config file{hint}"
    )
