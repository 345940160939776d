"""JSON files of a preset folder, as in KerasHub 0.32: config, tokenizer, preprocessor, task and metadata."""

from collections.abc import Mapping
from typing import Any

import jax

from mlm_jax.families.settings import settings_from_config
from mlm_jax.formats.model_folder import StoredModel

CONFIG_FILE = "config.json"
TASK_FILE = "task.json"

BACKBONE_SETTINGS: Mapping[str, str] = {
    "vocabulary_size": "vocabulary_size",
    "num_layers": "num_layers",
    "num_heads": "num_heads",
    "hidden_dim": "hidden_dim",
    "intermediate_dim": "intermediate_dim",
    "dropout": "dropout_rate",
    "max_sequence_length": "max_sequence_length",
    "num_segments": "num_segments",
}
"""Maps KerasHub's names of a BertBackbone's settings to ours."""


def json_files(model: StoredModel, tokenizer_settings: Mapping[str, bool]) -> dict[str, dict[str, Any]]:
    """Returns the content of each file by name; a model without a head has no preprocessor and no task.

    `tokenizer_settings` are the settings of KerasHub's tokenizer, such as `lowercase` and `strip_accents`.
    """
    dtype = str(model.params["encoder"]["embeddings"]["token"].dtype)
    backbone = _named("BertBackbone", dtype, settings_from_config(model.config, BACKBONE_SETTINGS))
    tokenizer = _tokenizer(tokenizer_settings)
    task_name = next((name for part, name in _TASK_NAMES.items() if part in model.params), None)
    metadata = {
        "keras_version": "3.15.1",
        "keras_hub_version": "0.32.0",
        "parameter_count": sum(leaf.size for leaf in jax.tree.leaves(model.params["encoder"])),
        "tasks": [task_name] if task_name else [],
    }
    files = {CONFIG_FILE: backbone, "tokenizer.json": tokenizer, "metadata.json": metadata}
    if task_name is None:
        return files
    class_name = f"Bert{task_name}"
    preprocessor = _preprocessor(class_name, tokenizer, model.config.max_sequence_length)
    task: dict[str, Any] = {"backbone": backbone, "preprocessor": preprocessor, "name": _MODULES[class_name]}
    if class_name == "BertTextClassifier":
        classes = len(model.params["classifier"]["bias"])
        several = model.problem_type == "multi_label_classification"
        activation = "sigmoid" if several else None
        task |= {"num_classes": classes, "activation": activation, "dropout": model.config.dropout_rate}
    return files | {"preprocessor.json": preprocessor, TASK_FILE: _keras_object(class_name, task)}


# Task of each head.
_TASK_NAMES = {"head": "MaskedLM", "classifier": "TextClassifier"}
_MODULES = {
    "BertBackbone": "bert_backbone",
    "BertTokenizer": "bert_tokenizer",
    "BertMaskedLMPreprocessor": "bert_masked_lm_preprocessor",
    "BertMaskedLM": "bert_masked_lm",
    "BertTextClassifierPreprocessor": "bert_text_classifier_preprocessor",
    "BertTextClassifier": "bert_text_classifier",
}


def _keras_object(class_name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "module": f"keras_hub.src.models.bert.{_MODULES[class_name]}",
        "class_name": class_name,
        "config": dict(settings),
        "registered_name": f"keras_hub>{class_name}",
    }


def _named(class_name: str, dtype: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a Keras object with the additional settings that every Keras layer has."""
    policy = {
        "module": "keras",
        "class_name": "DTypePolicy",
        "config": {"name": dtype},
        "registered_name": None,
    }
    return _keras_object(
        class_name, {"name": _MODULES[class_name], "trainable": True, "dtype": policy, **settings}
    )


def _tokenizer(tokenizer_settings: Mapping[str, bool]) -> dict[str, Any]:
    settings = {
        "config_file": "tokenizer.json",
        "vocabulary": None,
        "sequence_length": None,
        **tokenizer_settings,
        "split": True,
        "suffix_indicator": "##",
        "oov_token": "[UNK]",
        "special_tokens": None,
        "special_tokens_in_strings": False,
    }
    return _named("BertTokenizer", "int32", settings)


def _preprocessor(task: str, tokenizer: Mapping[str, Any], length: int) -> dict[str, Any]:
    settings = {
        "tokenizer": tokenizer,
        "config_file": "preprocessor.json",
        "sequence_length": length,
        "truncate": "round_robin",
    }
    if task == "BertMaskedLM":
        settings |= {
            "mask_selection_rate": 0.15,
            "mask_selection_length": max(1, -(-length * 15 // 100)),
            "mask_token_rate": 0.8,
            "random_token_rate": 0.1,
        }
    return _named(f"{task}Preprocessor", "float32", settings)
