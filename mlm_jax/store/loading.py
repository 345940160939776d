"""Loads a model by name or folder, in any supported format."""

import sys
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from mlm_jax.config import BertConfig
from mlm_jax.config.presets import PRESETS
from mlm_jax.errors import InputError
from mlm_jax.files.json_files import read_json_object
from mlm_jax.formats.model_folder import StoredModel, check_vocabulary, random_model, read_training_record
from mlm_jax.formats.name_table import Reading
from mlm_jax.store.format_registry import read_architecture, read_model
from mlm_jax.store.hub import find_model
from mlm_jax.text.tokenizer import Tokenizer

CERTIFICATE_FILE = "certificate.json"


def load_model(
    name: str | Path, *, load_weights: bool = True, tokenizer: Tokenizer | None = None, seed: int = 0
) -> StoredModel:
    """Loads a model by built-in name, hf://user/model or kaggle://handle, or from a folder of any format.

    With `load_weights=False`, returns a masked LM of the same architecture with random parameters drawn from `seed`,
    with a classifier if the files state its classes. A `tokenizer` replaces the model's own; a random model with a
    built-in name then needs no files at all.

    Raises:
        InputError: there is no such model, its files are unusable, or the tokenizer has a different vocabulary size.
    """
    if not isinstance(tokenizer, Tokenizer | None):
        raise InputError(f"tokenizer: found {type(tokenizer).__name__}: must be a Tokenizer or None")
    if not isinstance(load_weights, bool):
        raise InputError(f"load_weights = {load_weights!r}: must be True or False")
    if not load_weights:
        found = _architecture(name, tokenizer)
        check_vocabulary(name, found.config, found.tokenizer)
        model = random_model(found.config, found.tokenizer, seed, found.labels)
        return replace(model, problem_type=found.problem_type)
    model = load_reading(name).model
    if tokenizer is None:
        return model
    if tokenizer.vocabulary_size not in (model.tokenizer.vocabulary_size, model.config.vocabulary_size):
        raise InputError(
            f"{name}: the tokenizer has {tokenizer.vocabulary_size} entries: must have "
            f"{model.tokenizer.vocabulary_size}, as the model's own"
        )
    return replace(model, tokenizer=tokenizer)


def load_reading(name: str | Path) -> Reading:
    """Loads a model with the names of the tensors in its files. Raises InputError as `load_model` does."""
    folder = find_model(name)
    reading = read_model(folder)
    for note in reading.notes:
        tqdm.write(f"{name}: {note}", file=sys.stderr)
    return replace(reading, model=with_training_record(folder, reading.model))


def load_masked_lm(
    name: str | Path, *, load_weights: bool = True, tokenizer: Tokenizer | None = None, seed: int = 0
) -> StoredModel:
    """Loads a model like `load_model`, with only the encoder and the masked-LM head.

    Raises:
        InputError: as `load_model`, or the model has no masked-LM head.
    """
    model = load_model(name, load_weights=load_weights, tokenizer=tokenizer, seed=seed)
    if "head" not in model.params:
        raise InputError(f"{name}: has no masked-LM head: converting it with --allow-random-head adds one")
    params = {part: model.params[part] for part in ("encoder", "head")}
    return replace(model, params=params, labels=None, problem_type=None)


def with_training_record(folder: Path, model: StoredModel) -> StoredModel:
    """Returns a model with the training record that a conversion wrote into the certificate of its folder, if any."""
    file = folder / CERTIFICATE_FILE
    if model.training is not None or not file.is_file():
        return model
    return replace(model, training=read_training_record(file, read_json_object(file).get("training")))


def load_config(name: str | Path) -> BertConfig:
    """Returns the config of a model without its weights. Raises InputError as `load_model` does."""
    return load_architecture(name).config


def load_architecture(name: str | Path) -> StoredModel:
    """Returns a model without its parameters, which need not exist. Raises InputError as `load_model` does."""
    folder = find_model(name, weights=False)
    return with_training_record(folder, read_architecture(folder))


def _architecture(name: str | Path, tokenizer: Tokenizer | None) -> StoredModel:
    built_in = PRESETS.get(str(name)) if not Path(name).is_dir() else None
    if built_in is not None and tokenizer is not None:
        return StoredModel(built_in, {}, tokenizer)
    folder = find_model(name, weights=False)
    if built_in is not None:
        return StoredModel(built_in, {}, _tokenizer_in(folder))
    found = read_architecture(folder)
    return found if tokenizer is None else replace(found, tokenizer=tokenizer)


def _tokenizer_in(folder: Path) -> Tokenizer:
    """Loads the tokenizer of a folder that may contain nothing else."""
    try:
        return Tokenizer.load(folder)
    except InputError:
        return read_architecture(folder).tokenizer
