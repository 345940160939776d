"""Hugging Face's BERT folders: config.json, model.safetensors or pytorch_model.bin, vocab.txt or tokenizer.json.

Supports transformers' `BertModel`, `BertForMaskedLM`, `BertForPreTraining` and `BertForSequenceClassification`.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from mlm_jax.config.model import Activation, BertConfig, HeadActivation
from mlm_jax.errors import InputError
from mlm_jax.files.json_files import read_json_object
from mlm_jax.formats.bert_config import (
    BERT_SETTINGS,
    config_from_settings,
    require_bert,
    settings_from_config,
)
from mlm_jax.formats.hugging_face_names import (
    BIAS,
    DECODER_BIAS,
    ENCODER_PREFIX,
    ROWS,
    NamedTensors,
    name_tensors,
)
from mlm_jax.formats.model_folder import (
    StoredModel,
    check_num_classes,
    check_pooler,
    check_vocabulary,
    declared_parameters,
    parameters_of,
    read_problem_type,
    spare_rows,
    unnamed_classes,
    write_json,
    write_tensors,
)
from mlm_jax.formats.name_table import Reading, Tensor, parts_in, read_params, write_params
from mlm_jax.formats.tensor_checks import some
from mlm_jax.formats.torch_files import WEIGHTS_FILE, has_weights, open_weights
from mlm_jax.text.tokenizer import Tokenizer

NAME = "hugging_face"
DROPPED_PARTS: Mapping[str, str] = {}
NEEDS_POOLER = False

_CONFIG, _GOOGLE_CONFIG = "config.json", "bert_config.json"
_CLASSIFIER = "BertForSequenceClassification"

_ACTIVATIONS: Mapping[str, HeadActivation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
_ACTIVATION_NAMES: Mapping[Activation, str] = {"gelu": "gelu", "gelu_tanh": "gelu_new"}

# Model parts of each transformers class.
_CLASSES: Mapping[str, tuple[str, ...]] = {
    "BertForPreTraining": ("encoder", "head", "next_sentence"),
    "BertForMaskedLM": ("encoder", "head"),
    _CLASSIFIER: ("encoder", "classifier"),
    "BertModel": ("encoder",),
}


def recognizes(folder: Path) -> bool:
    """Returns True if transformers wrote the folder, for any architecture.

    Until 2021, config.json had no `model_type`; and many folders only have the bert_config.json of a TensorFlow
    checkpoint, next to weights that were converted from it.
    """
    settings = read_json_object(folder / _CONFIG)
    if "model_type" in settings:
        return True
    if has_weights(folder):
        return "hidden_size" in (settings or read_json_object(folder / _GOOGLE_CONFIG))
    return "hidden_size" in settings and not (folder / _GOOGLE_CONFIG).is_file()


def expressible(config: BertConfig) -> BertConfig:
    """Returns the nearest expressible config: the same activation and epsilon in encoder and head.

    Raises:
        InputError: the architecture is not BERT's.
    """
    return replace(
        require_bert(NAME, config),
        embedding_dropout=True,
        head_activation=cast(HeadActivation, config.activation),
        head_layer_norm_epsilon=config.layer_norm_epsilon,
    )


def read_architecture(folder: Path) -> StoredModel:
    """Reads everything but the parameters; with a pooler, or classes, if the class of the model has them."""
    file = _config_file(folder)
    settings = read_json_object(file)
    architectures = _architectures(file, settings)
    config = replace(_config(file, settings), pooler="BertForMaskedLM" not in architectures)
    model = StoredModel(config, {}, Tokenizer.load(folder))
    if _CLASSIFIER not in architectures:
        return model
    named, count = settings.get("id2label"), settings.get("num_labels")
    if count is None:
        # transformers writes neither for two classes without names.
        count = len(named) if isinstance(named, dict) else 2
    labels, _ = _labels(file, settings, check_num_classes(file, "num_labels", count))
    return replace(model, labels=labels, problem_type=read_problem_type(file, settings))


def read(folder: Path) -> Reading:
    """Reads the model of a folder.

    Tensors outside the encoder that belong to no head we know are left out, with a note, as in transformers.

    Raises:
        InputError: the model is not BERT, a file is missing or damaged, a tensor is missing, unknown, of the wrong
            shape or not finite, or the tokenizer has more entries than the model.
    """
    file = _config_file(folder)
    settings = read_json_object(file)
    config, architectures = _config(file, settings), _architectures(file, settings)
    with ExitStack() as stack:
        tensors, files = open_weights(folder, stack)
        named = _named(folder, settings, tensors)
        config = replace(config, pooler="bert.pooler.dense.weight" in named.tensors)
        tokenizer = Tokenizer.load(folder)
        check_vocabulary(folder, config, tokenizer)
        labels, problem_type, notes = None, None, spare_rows(config, tokenizer)
        parts = parts_in(ROWS, named.tensors)
        check_pooler(folder, config, parts)
        if "classifier.bias" in named.tensors:
            if not architectures:
                notes.append(
                    f"{file.name} names no architecture: classifier.* is read as that of {_CLASSIFIER}"
                )
            labels, label_notes = _labels(file, settings, named.tensors["classifier.bias"].size)
            problem_type = read_problem_type(file, settings)
            notes += label_notes
            dropout_rate = settings.get("classifier_dropout")
            if dropout_rate not in (None, config.dropout_rate):
                notes.append(
                    f"left out: classifier_dropout {dropout_rate!r} (hidden_dropout_prob {config.dropout_rate} is "
                    "used in the classifier, too)"
                )
        if named.left_out:
            names = ", ".join(sorted(named.left_out))
            notes.append(f"left out: {names} ({', '.join(architectures) or 'an unknown class'})")
        parameters = declared_parameters(config, parts, len(labels or ()))
        params = read_params(folder, ROWS, parameters, named.tensors)
    model = StoredModel(config, params, tokenizer, labels, problem_type)
    return Reading(model, len(tensors), named.dropped, notes, files)


def _config_file(folder: Path) -> Path:
    own = folder / _CONFIG
    return own if own.is_file() else folder / _GOOGLE_CONFIG


def _architectures(file: Path, settings: Mapping[str, Any]) -> list[str]:
    names = settings.get("architectures") or []
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise InputError(f"{file}: architectures = {names!r}: must be a list of names")
    return names


def _named(folder: Path, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> NamedTensors:
    architectures = settings.get("architectures")
    tied = bool(settings.get("tie_word_embeddings", True))
    # A classifier of tokens has the same names, but no pooler.
    has_pooler = any(name.endswith("pooler.dense.weight") for name in tensors)
    with_classifier = _CLASSIFIER in architectures if architectures else has_pooler
    return name_tensors(folder, tensors, tied=tied, with_classifier=with_classifier)


def _config(file: Path, settings: Mapping[str, Any]) -> BertConfig:
    family = settings.get("model_type", "bert")
    if family != "bert":
        raise InputError(f"{file}: model_type {family!r} is not supported: must be 'bert'")
    others = [name for name in _architectures(file, settings) if not name.startswith("Bert")]
    if others and "model_type" not in settings:
        raise InputError(
            f"{file}: architecture {others[0]} is not supported: must be BERT's, such as BertModel"
        )
    # transformers writes every setting, but other programs rely on the defaults of its BertConfig.
    unsupported = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}
    for name, only in unsupported.items():
        if (settings.get(name) or only) != only:
            raise InputError(f"{file}: {name} = {settings[name]!r} is not supported: must be {only!r}")
    activation = settings.get("hidden_act", "gelu")
    if not isinstance(activation, str) or activation not in _ACTIVATIONS:
        raise InputError(
            f"{file}: hidden_act {activation!r} is not supported: must be one of {', '.join(_ACTIVATIONS)}"
        )
    epsilon = settings.get("layer_norm_eps", 1e-12)
    return config_from_settings(
        NAME,
        file,
        settings,
        {**BERT_SETTINGS, "tie_word_embeddings": "tie_embeddings"},
        activation=_ACTIVATIONS[activation],
        head_activation=_ACTIVATIONS[activation],
        layer_norm_epsilon=epsilon,
        head_layer_norm_epsilon=epsilon,
    )


def _labels(file: Path, settings: Mapping[str, Any], classes: int) -> tuple[tuple[str, ...], list[str]]:
    """Returns the names of the classes, and a note if the config does not name as many as there are."""
    named = settings.get("id2label")
    if named is None:
        return unnamed_classes(classes), []
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
        raise InputError(f"{file}: id2label must map each class to its name")
    if len(named) != classes:
        return unnamed_classes(classes), [
            f"id2label names {len(named)} classes, the classifier has {classes}: they are called LABEL_0, LABEL_1, …"
        ]
    if set(named) != {str(index) for index in range(classes)}:
        raise InputError(f"{file}: id2label has the keys {some(named)}: must be 0 to {classes - 1}")
    names = tuple(named[str(index)] for index in range(classes))
    if len(set(names)) < classes:
        return unnamed_classes(classes), [
            f"id2label gives several classes the same name ({some(names)}): they are called LABEL_0, LABEL_1, …"
        ]
    return names, []


def class_of(model: StoredModel) -> str:
    """Returns the transformers class with the model's parts. Raises InputError if there is none."""
    for name, parts in _CLASSES.items():
        if set(parts) == set(model.params):
            return name
    raise InputError(
        f"no class of transformers has exactly the parts {', '.join(sorted(model.params))}: must be those of "
        f"{', '.join(_CLASSES)}; --backbone-only converts only the encoder"
    )


def write(model: StoredModel, folder: Path) -> int:
    """Writes the folder's files and returns the number of tensors. The config must be `expressible`."""
    class_name = class_of(model)
    prefix = ENCODER_PREFIX if class_name == "BertModel" else ""
    tensors = {
        name.removeprefix(prefix): array
        for name, array in write_params(ROWS, parameters_of(model), model.params)
    }
    if "head" in model.params and not model.config.tie_embeddings:
        # transformers 5 adds this bias, transformers 4 the other.
        tensors[DECODER_BIAS] = tensors[BIAS]
    write_tensors(folder / WEIGHTS_FILE, tensors, "pt")
    write_json(folder / _CONFIG, dict(sorted(_settings(model, class_name).items())))
    model.tokenizer.save(folder, model_max_length=model.config.max_sequence_length)
    return len(tensors)


def _settings(model: StoredModel, class_name: str) -> dict[str, Any]:
    config, dtype = model.config, str(model.params["encoder"]["embeddings"]["token"].dtype)
    settings = settings_from_config(config, BERT_SETTINGS) | {
        "architectures": [class_name],
        "model_type": "bert",
        "hidden_act": _ACTIVATION_NAMES[config.activation],
        "layer_norm_eps": config.layer_norm_epsilon,
        "tie_word_embeddings": config.tie_embeddings,
        "pad_token_id": model.tokenizer.pad_token_id,
        "position_embedding_type": "absolute",
        "dtype": dtype,
        "torch_dtype": dtype,
    }
    if model.labels:
        settings["id2label"] = {str(index): label for index, label in enumerate(model.labels)}
        settings["label2id"] = {label: index for index, label in enumerate(model.labels)}
    if model.problem_type:
        settings["problem_type"] = model.problem_type
    return settings


def outputs(folder: Path, batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns the outputs of transformers; see `mlm_jax.store.reference_outputs`.

    The class follows from the tensors, because `architectures` may be absent or name only one of the heads.
    """
    import torch
    import transformers

    file = _config_file(folder)
    with ExitStack() as stack:
        named = _named(folder, read_json_object(file), open_weights(folder, stack)[0])
        parts = parts_in(ROWS, named.tensors)
        name = next(name for name, needed in _CLASSES.items() if set(needed) <= set(parts))
        config = transformers.BertConfig.from_json_file(file)
        if "classifier" in parts:
            config.num_labels = named.tensors["classifier.bias"].size
        # transformers does not remove the prefixes of wrappers.
        state = {
            key: torch.from_numpy(tensor.read().astype(np.float32)) for key, tensor in named.tensors.items()
        }
    model, report = getattr(transformers, name).from_pretrained(
        None if named.wrapper else folder,
        config=config,
        state_dict=state if named.wrapper else None,
        attn_implementation="eager",
        dtype=torch.float32,
        output_loading_info=True,
    )
    missing = [key for key in report["missing_keys"] if ".pooler." not in f".{key}"]
    if missing:
        raise ValueError(f"transformers finds no {some(missing)}")
    with torch.no_grad():
        computed = model.eval()(
            input_ids=torch.from_numpy(batch["token_ids"]).long(),
            attention_mask=torch.from_numpy(batch["padding_mask"]).long(),
            token_type_ids=torch.from_numpy(batch["segment_ids"]).long(),
        )
    first = "prediction_logits" if name == "BertForPreTraining" else "logits"
    return (computed.last_hidden_state if name == "BertModel" else computed[first]).numpy()
