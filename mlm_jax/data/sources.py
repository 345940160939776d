"""Data of a run: rows for training, rows for evaluation, and their tokenizer."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mlm_jax.config import DataConfig
from mlm_jax.config.masking import MaskingConfig, MaskingRecipe
from mlm_jax.data.batches import Rows
from mlm_jax.data.folders import open_folder
from mlm_jax.data.manifest import TOKENIZER_FOLDER
from mlm_jax.data.shards import TokenStore, open_shards
from mlm_jax.errors import InputError
from mlm_jax.text.tokenizer import Tokenizer
from mlm_jax.vocabulary.files import TOKENIZER_FILES


@dataclass(frozen=True)
class RunData:
    """Opened data of a run. The fingerprints cover the tokens and the order of documents."""

    tokenizer: Tokenizer
    train: Rows
    evaluation: Rows | None
    fingerprint: str
    evaluation_fingerprint: str | None
    stores: tuple[TokenStore, ...]
    """Stores that the rows are read from, for the comparison with their checksums (`verification.py`)."""

    def description(self, config: DataConfig) -> dict[str, Any]:
        """Returns the settings that a resumed run must share: data, tokenizer, and the division into rows and order."""
        # Absent for the order that earlier versions had.
        order = {} if config.order == "global" else {"order": config.order}
        return {
            "data": {
                "fingerprint": self.fingerprint,
                "sequence_length": config.sequence_length,
                "packing": config.packing,
                "attend_within_documents": config.attend_within_documents,
                **order,
            },
            "tokenizer": {"fingerprint": self.tokenizer.fingerprint},
        }


def open_run_data(config: DataConfig) -> RunData:
    """Opens the prepared folders at `config.path` and `config.eval_path`, which are paths or fsspec URLs.

    Raises:
        InputError: a folder is missing, incomplete or damaged, or the two were made with different tokenizers.
    """
    if not config.path:
        raise InputError("data.path: must name a folder written by mlm-jax prepare")
    train = open_shards(config.path)
    if config.order == "windowed":
        train = train.in_pieces()
    tokenizer = open_tokenizer(config.path, train)
    evaluation = open_shards(config.eval_path) if config.eval_path else None
    if evaluation is not None and evaluation.tokenizer_fingerprint != tokenizer.fingerprint:
        raise InputError(
            f"{config.eval_path}: prepared with tokenizer {evaluation.tokenizer_fingerprint[:12]}: must be "
            f"{tokenizer.fingerprint[:12]}, that of {config.path}"
        )
    return _sources(train, evaluation, tokenizer, config)


def tokenize_run_data(
    documents: Iterable[str], eval_documents: Iterable[str] | None, tokenizer: Tokenizer, config: DataConfig
) -> RunData:
    """Tokenizes strings in memory."""
    evaluation = None if eval_documents is None else TokenStore.from_documents(eval_documents, tokenizer)
    return _sources(TokenStore.from_documents(documents, tokenizer), evaluation, tokenizer, config)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Loads the tokenizer of prepared data at a path or URL. Raises InputError if it is missing or damaged."""
    with open_folder(path).copy(TOKENIZER_FOLDER, TOKENIZER_FILES) as folder:
        return Tokenizer.load(folder)


def open_tokenizer(path: str | Path, store: TokenStore) -> Tokenizer:
    """Loads the tokenizer of the prepared data at `path`. Raises InputError if it is not that of the manifest."""
    tokenizer = load_tokenizer(path)
    if tokenizer.fingerprint != store.tokenizer_fingerprint:
        raise InputError(
            f"{path}/{TOKENIZER_FOLDER}: damaged: its fingerprint is {tokenizer.fingerprint}, expected "
            f"{store.tokenizer_fingerprint} (manifest); prepare the folder again"
        )
    return tokenizer


def _sources(
    train: TokenStore, evaluation: TokenStore | None, tokenizer: Tokenizer, config: DataConfig
) -> RunData:
    for name, store in (("data.path", train), ("data.eval_path", evaluation)):
        if config.attend_within_documents and store is not None and store.separator != "sep":
            raise InputError(
                f"data.attend_within_documents = True: the documents of {name} have no [SEP] between them; "
                "prepare them with --separator sep"
            )
    # Evaluation rows do not depend on attend_within_documents.
    eval_config = replace(
        config, packing=config.eval_packing or config.packing, attend_within_documents=False
    )
    return RunData(
        tokenizer=tokenizer,
        train=Rows(train, tokenizer, config),
        evaluation=None if evaluation is None else Rows(evaluation, tokenizer, eval_config),
        fingerprint=train.fingerprint,
        evaluation_fingerprint=None if evaluation is None else evaluation.fingerprint,
        stores=(train,) if evaluation is None else (train, evaluation),
    )


def resolve_masking(recipe: MaskingRecipe, tokenizer: Tokenizer, sequence_length: int) -> MaskingConfig:
    """Completes a recipe with the tokenizer's ids. Special tokens are never selected."""
    words, documents = recipe.unit != "token", recipe.quota == "document"
    marked = words and tokenizer.marks_words
    return MaskingConfig(
        **asdict(recipe) | {"mask_selection_length": recipe.selection_length(sequence_length)},
        vocabulary_size=tokenizer.vocabulary_size,
        mask_token_id=tokenizer.mask_token_id,
        unselectable_token_ids=tokenizer.special_token_ids,
        padding_token_id=tokenizer.pad_token_id,
        continuation_token_ids=tuple(np.flatnonzero(tokenizer.continues_word).tolist()) if marked else (),
        words_from_data=words and not marked,
        document_end_id=tokenizer.sep_token_id if documents else None,
    )
