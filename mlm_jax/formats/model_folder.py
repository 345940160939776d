"""Stored models, with config, parameters by part, and tokenizer; and the folders they are exported to.

FOLDER/config.json  model.safetensors  tokenizer/
"""

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, cast, get_args

import jax
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from mlm_jax.config import BertConfig
from mlm_jax.config.settings import from_json
from mlm_jax.config.training_record import TrainingRecord
from mlm_jax.errors import InputError
from mlm_jax.files.atomic import write_atomically
from mlm_jax.files.checksums import write_checksums
from mlm_jax.files.json_files import json_text, read_json_object
from mlm_jax.formats.tensor_checks import check_names, check_shape, check_weight, open_tensors, read_tensor
from mlm_jax.keys import Purpose, purpose_key
from mlm_jax.model.bert import BertMaskedLM, abstract_masked_lm
from mlm_jax.model.classifier import BertClassifier
from mlm_jax.model.layers import split_model
from mlm_jax.parallel.weights import Weight, declared_weights
from mlm_jax.text.tokenizer import Tokenizer

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FOLDER = "tokenizer"
FORMAT = "mlm_jax model"

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]

_MOST_CLASSES = 1_000_000

# Possible parts of a model, in order.
PARTS = (
    *("encoder", "head", "next_sentence", "classifier"),
    *("token_classifier", "question_answering", "contact_head"),
)


@dataclass(frozen=True)
class StoredModel:
    """A model that is read from and written to folders.

    `params` has a nested dict of arrays for each part of the model: `encoder`, `head` (of the masked LM),
    `next_sentence` and `classifier` (each a kernel `[hidden_dim, classes]` and a bias, applied to the pooled output),
    and heads that are kept but not used: `token_classifier` and `question_answering`, applied to every hidden state,
    and `contact_head` (ESM), applied to the weights of attention `[layers · heads]`.
    The arrays are NumPy arrays in the stored dtype, without padding rows for `vocabulary_multiple`. `labels` are the
    names of the classifier's outputs and `problem_type` is its problem type in transformers, or None if not stated.
    `training` is None if it is unknown how the model was trained.
    """

    config: BertConfig
    params: dict[str, Any]
    tokenizer: Tokenizer
    labels: tuple[str, ...] | None = None
    problem_type: ProblemType | None = None
    training: TrainingRecord | None = None


def unnamed_classes(count: int) -> tuple[str, ...]:
    """Returns the names that transformers gives to classes without one: LABEL_0, LABEL_1, …."""
    return tuple(f"LABEL_{index}" for index in range(count))


def check_num_classes(file: Path, name: str, value: Any) -> int:
    """Returns a number of classes that a file states. Raises InputError if it is none that a model can have."""
    if type(value) is not int or not 1 <= value <= _MOST_CLASSES:
        raise InputError(f"{file}: {name} = {value!r}: must be a whole number from 1 to {_MOST_CLASSES:,}")
    return value


def random_model(
    config: BertConfig, tokenizer: Tokenizer, seed: int, labels: tuple[str, ...] | None = None
) -> StoredModel:
    """Returns a masked LM with the initial float32 parameters of a run with this seed.

    With `labels`, it also has the initial classifier of a fine-tuning with this seed.

    Raises:
        InputError: the parameters need more memory than this machine has free.
    """
    params = _draw(partial(BertMaskedLM, config), purpose_key(seed, Purpose.PARAMETERS), "model")
    if labels:
        config = replace(config, pooler=True)
        fresh = random_classifier(config, len(labels), seed)
        params |= {"encoder": fresh["encoder"] | params["encoder"], "classifier": fresh["classifier"]}
    return StoredModel(config, jax.tree.map(np.asarray, params), tokenizer, labels)


def random_classifier(config: BertConfig, num_classes: int, seed: int) -> dict[str, Any]:
    """Returns the initial float32 parameters of a classifier with this seed: `encoder` and `classifier`.

    Raises:
        InputError: they need more memory than this machine has free.
    """
    make = partial(BertClassifier, config, num_classes)
    return _draw(make, purpose_key(seed, Purpose.CLASSIFIER), "classifier")


def _draw(make: Callable[..., nnx.Module], key: Any, what: str) -> dict[str, Any]:
    """Returns the initial parameters of a model. Raises InputError if they need more memory than there is."""
    sizes = [
        leaf.size for leaf in jax.tree.leaves(nnx.state(nnx.eval_shape(partial(make, key=key)), nnx.Param))
    ]
    # An array of 2 GB took a tenth more while it was drawn.
    needed, free = 4.4 * sum(sizes), _free_memory()
    if needed > free:
        raise InputError(
            f"a random {what} of this config needs {needed / 1e9:,.1f} GB of memory for "
            f"{sum(sizes):,} parameters: must be at most what is free, {free / 1e9:,.1f} GB"
        )
    return split_model(make(key=key))[1]


def _free_memory() -> int:
    """Returns the bytes that Linux can give to a process without swapping; elsewhere, those of the machine."""
    with contextlib.suppress(OSError):
        if found := re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text()):
            return 1024 * int(found[1])
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def flatten_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `{"encoder/layers/attention/query/kernel": leaf, …}`."""
    return nnx.traversals.flatten_mapping(params, sep="/")


def nest_params(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Inverts `flatten_params`."""
    return nnx.traversals.unflatten_mapping(flat, sep="/")


def declared_parameters(config: BertConfig, parts: Iterable[str], num_classes: int = 0) -> dict[str, Weight]:
    """Returns the parameters of a model with these parts, by path, without padding rows for `vocabulary_multiple`."""
    declared = dict(_declared_masked_lm(replace(config, vocabulary_multiple=1)))
    width = config.hidden_dim
    for part, inputs, outputs in (
        *(("next_sentence", width, 2), ("question_answering", width, 2)),
        *(("classifier", width, num_classes), ("token_classifier", width, num_classes)),
        ("contact_head", config.num_layers * config.num_heads, 1),
    ):
        kernel, bias = f"{part}/kernel", f"{part}/bias"
        declared[kernel] = Weight(kernel, (inputs, outputs), ("embed", "classes"))
        declared[bias] = Weight(bias, (outputs,), ("classes",))
    wanted = set(parts)
    return {path: weight for path, weight in declared.items() if path.split("/")[0] in wanted}


def parameters_of(model: StoredModel) -> dict[str, Weight]:
    """Returns the declarations of the model's parameters."""
    heads = [model.params[part] for part in ("classifier", "token_classifier") if part in model.params]
    classes = len(heads[0]["bias"]) if heads else 0
    return declared_parameters(model.config, model.params, classes)


@cache
def _declared_masked_lm(config: BertConfig) -> Mapping[str, Weight]:
    return declared_weights(abstract_masked_lm(config))


def check_model(config: BertConfig, params: Any, tokenizer: Tokenizer, num_classes: int = 0) -> None:
    """Checks that parameters of a model in memory, and its tokenizer, are those of the config.

    Raises:
        InputError: a parameter is missing, unknown or of another shape, or the tokenizer has other ids.
    """
    if not isinstance(config, BertConfig) or not isinstance(tokenizer, Tokenizer):
        raise InputError(
            f"found a {type(config).__name__} and a {type(tokenizer).__name__}: must be a BertConfig and a Tokenizer"
        )
    if not isinstance(params, Mapping):
        raise InputError(f"params: found {type(params).__name__}: must be a dict of parameters")
    check_vocabulary("params", config, tokenizer)
    parts = {*params, "classifier"} if num_classes else set(params)
    declared = declared_parameters(config, parts, num_classes)
    found = flatten_params(params)
    check_names("params", set(found), set(declared))
    for path, weight in declared.items():
        check_shape("params", path, np.shape(found[path]), weight.shape)


def check_vocabulary(where: str | Path, config: BertConfig, tokenizer: Tokenizer) -> None:
    """Raises InputError if the tokenizer has ids without a row in the embedding table.

    More rows are common: tables are padded to a multiple of 8 or 64, and a small text yields fewer entries than wanted.
    """
    if config.vocabulary_size < tokenizer.vocabulary_size:
        last = tokenizer.id_to_token(tokenizer.vocabulary_size - 1) or ""
        raise InputError(
            f"{where}: the embedding table has {config.vocabulary_size} rows, its tokenizer "
            f"{tokenizer.vocabulary_size} entries (the last is {last[:60]!r}): must be at least as many rows"
        )


def check_pooler(where: str | Path, config: BertConfig, parts: Iterable[str]) -> None:
    """Raises InputError if a model has a classifier without the pooler that it is applied to."""
    if "classifier" in parts and not config.pooler:
        raise InputError(
            f"{where}: has a classifier, but not the pooler that it is applied to: must have both, or neither"
        )


def spare_rows(config: BertConfig, tokenizer: Tokenizer) -> list[str]:
    """Describes the rows of the embedding table without an entry in the tokenizer; an empty list if there are none."""
    rows, entries = config.vocabulary_size, tokenizer.vocabulary_size
    if rows == entries:
        return []
    return [
        f"{rows - entries:,} of the {rows:,} rows of the embedding table have no entry in the tokenizer; kept"
    ]


def without_padded_rows(config: BertConfig, params: dict[str, Any]) -> tuple[BertConfig, dict[str, Any]]:
    """Returns the model without the rows that `vocabulary_multiple` adds to the vocabulary."""
    flat = flatten_params(params)
    flat |= {path: leaf[: config.vocabulary_size] for path, leaf in vocabulary_leaves(config, flat).items()}
    return replace(config, vocabulary_multiple=1), nest_params(flat)


def with_padded_rows(config: BertConfig, params: dict[str, Any]) -> dict[str, Any]:
    """Returns a stored model's parameters, padded with rows of zeros to `config.padded_vocabulary_size`."""
    spare = config.padded_vocabulary_size - config.vocabulary_size
    flat = flatten_params(params)
    if spare:
        for path, leaf in vocabulary_leaves(config, flat).items():
            flat[path] = np.pad(leaf, [(0, spare)] + [(0, 0)] * (leaf.ndim - 1))
    return nest_params(flat)


def vocabulary_leaves(config: BertConfig, flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the parameters with one row per vocabulary entry."""
    declared = declared_parameters(config, PARTS)
    return {path: leaf for path, leaf in flat.items() if declared[path].axes[0] == "vocabulary"}


def is_model_folder(folder: Path) -> bool:
    """Returns True if `write_model_folder` wrote the folder."""
    return read_json_object(folder / CONFIG_FILE).get("format") == FORMAT


def write_json(file: Path, content: Any, *, indent: int = 2) -> None:
    """Writes a JSON file atomically."""
    write_atomically(file, f"{json_text(content, indent=indent)}\n".encode())


def write_tensors(file: Path, tensors: dict[str, np.ndarray], format: str) -> None:
    """Writes a new safetensors file, which others may read as far as the umask allows."""
    file.touch()
    mode = file.stat().st_mode
    save_file(tensors, file, metadata={"format": format})
    # safetensors makes a file that only its owner can read.
    file.chmod(mode)


def write_model_folder(folder: Path, model: StoredModel) -> int:
    """Writes a model's files and their checksums into an empty folder and returns the number of tensors.

    Raises:
        InputError: a parameter is not finite.
    """
    num_tensors = write_model_files(folder, model)
    write_checksums(folder)
    return num_tensors


def write_model_files(folder: Path, model: StoredModel) -> int:
    """Writes a model's files like `write_model_folder`, without checksums."""
    tensors = {path: np.ascontiguousarray(leaf) for path, leaf in flatten_params(model.params).items()}
    declared = declared_parameters(model.config, model.params, len(model.labels or ()))
    for path, array in tensors.items():
        check_weight(folder, path, array)
        # Otherwise, the folder could not be read.
        check_shape(folder, path, array.shape, declared[path].shape)
    model.tokenizer.save(folder / TOKENIZER_FOLDER)
    write_tensors(folder / WEIGHTS_FILE, tensors, FORMAT)
    settings = {"format": FORMAT, "model": asdict(model.config), "labels": model.labels}
    settings |= {"problem_type": model.problem_type}
    if model.training is not None:
        settings["training"] = asdict(model.training)
    write_json(folder / CONFIG_FILE, settings)
    return len(tensors)


def read_model_folder(folder: Path) -> StoredModel:
    """Reads a model folder written by `write_model_folder`.

    Raises:
        InputError: a file is missing or damaged, a tensor is missing, unknown, of the wrong shape or not finite, or
            the tokenizer has more entries than the model.
    """
    architecture = read_model_architecture(folder)
    config = architecture.config
    check_vocabulary(folder, config, architecture.tokenizer)
    with open_tensors(folder / WEIGHTS_FILE) as file:
        names = set(file.keys())
        parts = [part for part in PARTS if any(name.startswith(f"{part}/") for name in names)]
        check_pooler(folder / WEIGHTS_FILE, config, parts)
        parameters = declared_parameters(config, parts, len(architecture.labels or ()))
        check_names(folder / WEIGHTS_FILE, names, set(parameters))
        flat = {}
        for path, parameter in parameters.items():
            shape = tuple(file.get_slice(path).get_shape())
            check_shape(folder / WEIGHTS_FILE, path, shape, parameter.shape)
            array = read_tensor(folder / WEIGHTS_FILE, file, path)
            flat[path] = check_weight(folder / WEIGHTS_FILE, path, array)
    return replace(architecture, params=nest_params(flat))


def read_model_architecture(folder: Path) -> StoredModel:
    """Reads a model folder without its parameters. Raises InputError if config.json or the tokenizer is invalid."""
    settings = read_json_object(folder / CONFIG_FILE)
    config, labels = _config_and_labels(folder / CONFIG_FILE, settings)
    problem_type = read_problem_type(folder / CONFIG_FILE, settings)
    training = read_training_record(folder / CONFIG_FILE, settings.get("training"))
    return StoredModel(config, {}, Tokenizer.load(folder / TOKENIZER_FOLDER), labels, problem_type, training)


def _config_and_labels(file: Path, settings: Mapping[str, Any]) -> tuple[BertConfig, tuple[str, ...] | None]:
    try:
        config = from_json(BertConfig, json.dumps(settings.get("model")))
    except InputError as error:
        raise InputError(f"{file}: model: {error}") from error
    labels = settings.get("labels")
    if labels is not None and not (
        isinstance(labels, list) and all(isinstance(name, str) for name in labels)
    ):
        raise InputError(f"{file}: labels: must be null or a list of names")
    return config, tuple(labels) if labels else None


def read_problem_type(file: Path, settings: Mapping[str, Any]) -> ProblemType | None:
    """Returns the problem type in the settings of a file. Raises InputError if it is unknown."""
    value = settings.get("problem_type")
    if value is not None and value not in get_args(ProblemType):
        names = ", ".join(map(repr, get_args(ProblemType)))
        raise InputError(f"{file}: problem_type {value!r} is not supported: must be one of {names}")
    return cast(ProblemType | None, value)


def read_training_record(file: Path, value: Any) -> TrainingRecord | None:
    """Returns the training record in the settings of a file, or None. Raises InputError if it is invalid."""
    if value is None:
        return None
    try:
        return from_json(TrainingRecord, json.dumps(value))
    except InputError as error:
        raise InputError(f"{file}: training: {error}") from error
    except TypeError as error:
        names = ", ".join(field.name for field in fields(TrainingRecord))
        raise InputError(f"{file}: training: must be null or have {names}") from error
