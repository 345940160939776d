"""A model as it is stored: its config, its parts, its tokenizer; and the folder that mlm_jax exports.

FOLDER/config.json  model.safetensors  tokenizer/
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from mlm_jax.config import BertConfig
from mlm_jax.config.settings import from_json
from mlm_jax.errors import InputError
from mlm_jax.files import write_atomically
from mlm_jax.keys import Purpose, purpose_key
from mlm_jax.model.bert import BertMaskedLM, abstract_masked_lm
from mlm_jax.step.train_step import split_model
from mlm_jax.text.tokenizer import Tokenizer

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
TOKENIZER_FOLDER = "tokenizer"
FORMAT = "mlm_jax model"

# What a model may be made of, in this order.
PARTS = ("encoder", "head", "next_sentence", "classifier")


@dataclass(frozen=True)
class StoredModel:
    """A model between a folder and its use.

    `params` has a nested dict of arrays for each part that the model has: `encoder`, `head` (of the masked LM),
    `next_sentence` and `classifier` (a kernel `[hidden_dim, classes]` and a bias over the pooled output). They are
    NumPy arrays in the dtype in which they are stored, for `vocabulary_multiple` 1. `labels` names the classes.
    """

    config: BertConfig
    params: dict[str, Any]
    tokenizer: Tokenizer
    labels: tuple[str, ...] | None = None


def random_model(config: BertConfig, tokenizer: Tokenizer, seed: int) -> StoredModel:
    """A masked LM with freshly drawn parameters, float32: those that a run with that seed begins with."""
    key = purpose_key(seed, Purpose.PARAMETERS)
    _, params = split_model(BertMaskedLM(config, key=key))
    return StoredModel(config, jax.tree.map(np.asarray, params), tokenizer)


def flatten_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """`{"encoder/layers/attention/query/kernel": leaf, …}`."""
    flat: dict[str, Any] = {}
    for name, value in params.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}/{path}": leaf for path, leaf in flatten_params(value).items()}
        else:
            flat[name] = value
    return flat


def nest_params(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten_params`."""
    params: dict[str, Any] = {}
    for path, leaf in flat.items():
        *folders, name = path.split("/")
        place = params
        for folder in folders:
            place = place.setdefault(folder, {})
        place[name] = leaf
    return params


def parameter_shapes(
    config: BertConfig, parts: Iterable[str], num_classes: int = 0
) -> dict[str, tuple[int, ...]]:
    """Path and shape of every parameter of a model with those parts."""
    wanted = set(parts)
    _, abstract = split_model(abstract_masked_lm(replace(config, vocabulary_multiple=1)))
    shapes = {path: leaf.shape for path, leaf in flatten_params(abstract).items()}
    for part, classes in (("next_sentence", 2), ("classifier", num_classes)):
        shapes |= {f"{part}/kernel": (config.hidden_dim, classes), f"{part}/bias": (classes,)}
    return {path: shape for path, shape in shapes.items() if path.split("/")[0] in wanted}


def check_vocabulary(where: str | Path, config: BertConfig, tokenizer: Tokenizer) -> None:
    """InputError where the embedding table and the tokenizer differ in size."""
    if config.vocabulary_size != tokenizer.vocabulary_size:
        raise InputError(
            f"{where}: the model has {config.vocabulary_size} vocabulary entries, its tokenizer "
            f"{tokenizer.vocabulary_size}: must be equal"
        )


_VOCABULARY_LEAVES = ("encoder/embeddings/token", "head/bias", "head/output")


def without_padded_rows(config: BertConfig, params: dict[str, Any]) -> tuple[BertConfig, dict[str, Any]]:
    """The model without the rows of the vocabulary that `vocabulary_multiple` only pads it with."""
    flat = flatten_params(params)
    flat |= {path: flat[path][: config.vocabulary_size] for path in _VOCABULARY_LEAVES if path in flat}
    return replace(config, vocabulary_multiple=1), nest_params(flat)


def with_padded_rows(config: BertConfig, params: dict[str, Any]) -> dict[str, Any]:
    """A stored model's parameters with rows of zeros up to `config.padded_vocabulary_size`."""
    spare = config.padded_vocabulary_size - config.vocabulary_size
    flat = flatten_params(params)
    for path in _VOCABULARY_LEAVES:
        if path in flat and spare:
            flat[path] = np.pad(flat[path], [(0, spare)] + [(0, 0)] * (flat[path].ndim - 1))
    return nest_params(flat)


def is_model_folder(folder: Path) -> bool:
    """Whether `write_model_folder` made it."""
    return read_json_object(folder / CONFIG_FILE).get("format") == FORMAT


def read_json_object(file: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is no such file or it holds no object.

    Raises:
        InputError: the file is not JSON.
    """
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{file}: not valid JSON: {error}") from error
    return value if isinstance(value, dict) else {}


def write_model_folder(folder: Path, model: StoredModel) -> int:
    """Write a model's files into an empty folder; returns the number of tensors."""
    settings = {"format": FORMAT, "model": asdict(model.config), "labels": model.labels}
    model.tokenizer.save(folder / TOKENIZER_FOLDER)
    tensors = {path: np.ascontiguousarray(leaf) for path, leaf in flatten_params(model.params).items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": FORMAT})
    write_atomically(folder / CONFIG_FILE, (json.dumps(settings, indent=2) + "\n").encode())
    return len(tensors)


def read_model_folder(folder: Path) -> StoredModel:
    """The model of a folder that `write_model_folder` made.

    Raises:
        InputError: a file is missing or damaged, or a tensor is missing, extra or of another shape.
    """
    config, labels = read_model_config(folder)
    tokenizer = Tokenizer.load(folder / TOKENIZER_FOLDER)
    with open_tensors(folder / WEIGHTS_FILE) as file:
        names = set(file.keys())
        parts = [part for part in PARTS if any(name.startswith(f"{part}/") for name in names)]
        shapes = parameter_shapes(config, parts, len(labels or ()))
        check_names(folder / WEIGHTS_FILE, names, set(shapes))
        flat = {}
        for path, shape in shapes.items():
            flat[path] = file.get_tensor(path)
            check_shape(folder / WEIGHTS_FILE, path, flat[path].shape, shape)
    return StoredModel(config, nest_params(flat), tokenizer, labels)


def read_model_config(folder: Path) -> tuple[BertConfig, tuple[str, ...] | None]:
    """The config and the labels of an exported model. InputError where its config.json does not say them."""
    settings = read_json_object(folder / CONFIG_FILE)
    try:
        config = from_json(BertConfig, json.dumps(settings.get("model")))
    except InputError as error:
        raise InputError(f"{folder / CONFIG_FILE}: model: {error}") from error
    return config, tuple(settings["labels"]) if settings.get("labels") else None


def open_tensors(file: Path) -> Any:
    """A safetensors file, its tensors read when they are asked for. InputError where it is missing or damaged."""
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    try:
        return safe_open(file, framework="numpy")
    except SafetensorError as error:
        raise InputError(f"{file}: damaged or cut off: {' '.join(str(error).split())}") from error


def check_names(where: str | Path, found: set[str], wanted: set[str]) -> None:
    """InputError that names the first few tensors that are missing, or that nothing here takes."""
    for names, what in ((wanted - found, "missing"), (found - wanted, "unknown")):
        if names:
            first = ", ".join(sorted(names)[:3]) + (", …" if len(names) > 3 else "")
            raise InputError(f"{where}: {len(names)} {what} tensor{'s' * (len(names) > 1)}: {first}")


def check_shape(where: str | Path, name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    """InputError that names a tensor of another shape than the config asks for."""
    if tuple(found) != tuple(wanted):
        raise InputError(
            f"{where}: tensor {name} has shape {tuple(found)}: the config asks for {tuple(wanted)}"
        )
