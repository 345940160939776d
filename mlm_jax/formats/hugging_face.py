"""Hugging Face's BERT folders: config.json, model.safetensors or pytorch_model.bin, vocab.txt or tokenizer.json.

Supports transformers' `BertModel`, `BertForMaskedLM`, `BertForPreTraining` and `BertForSequenceClassification`.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from safetensors.numpy import save_file

from mlm_jax.config.model import Activation, BertConfig, HeadActivation
from mlm_jax.errors import InputError
from mlm_jax.formats.bert_config import (
    BERT_SETTINGS,
    config_from_settings,
    require_bert,
    settings_from_config,
)
from mlm_jax.formats.model_folder import (
    StoredModel,
    check_vocabulary,
    declared_parameters,
    parameters_of,
    read_json_object,
    write_json,
)
from mlm_jax.formats.name_table import Endings, Reading, Row, Tensor, parts_in, read_params, write_params
from mlm_jax.formats.torch_files import WEIGHTS_FILE, open_weights
from mlm_jax.text.tokenizer import Tokenizer

NAME = "hugging_face"
DROPPED_PARTS: Mapping[str, str] = {}
NEEDS_POOLER = False

_CONFIG = "config.json"

_ACTIVATIONS: Mapping[str, HeadActivation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
_ACTIVATION_NAMES: Mapping[Activation, str] = {"gelu": "gelu", "gelu_tanh": "gelu_new"}

# The prefix is omitted if the whole model is a BertModel.
_ENCODER_PREFIX = "bert."
_POSITIONS = "bert.embeddings.position_ids"
_TOKENS = "bert.embeddings.word_embeddings.weight"
_BIAS, _DECODER, _DECODER_BIAS = (
    f"cls.predictions.{name}" for name in ("bias", "decoder.weight", "decoder.bias")
)

_ENDINGS = Endings(kernel=".weight", bias=".bias", scale=".weight", offset=".bias", layout="out_in")
_LAYER, _LAYERS = "bert.encoder.layer.{layer}", "encoder/layers"
ROWS: tuple[Row, ...] = (
    Row(_TOKENS, "encoder/embeddings/token"),
    Row("bert.embeddings.position_embeddings.weight", "encoder/embeddings/position"),
    Row("bert.embeddings.token_type_embeddings.weight", "encoder/embeddings/segment"),
    *_ENDINGS.norm("bert.embeddings.LayerNorm", "encoder/embeddings/norm"),
    *_ENDINGS.linear(f"{_LAYER}.attention.self.query", f"{_LAYERS}/attention/query"),
    *_ENDINGS.linear(f"{_LAYER}.attention.self.key", f"{_LAYERS}/attention/key"),
    *_ENDINGS.linear(f"{_LAYER}.attention.self.value", f"{_LAYERS}/attention/value"),
    *_ENDINGS.linear(f"{_LAYER}.attention.output.dense", f"{_LAYERS}/attention/output"),
    *_ENDINGS.norm(f"{_LAYER}.attention.output.LayerNorm", f"{_LAYERS}/attention_norm"),
    *_ENDINGS.linear(f"{_LAYER}.intermediate.dense", f"{_LAYERS}/feed_forward/up"),
    *_ENDINGS.linear(f"{_LAYER}.output.dense", f"{_LAYERS}/feed_forward/down"),
    *_ENDINGS.norm(f"{_LAYER}.output.LayerNorm", f"{_LAYERS}/feed_forward_norm"),
    *_ENDINGS.linear("bert.pooler.dense", "encoder/pooler"),
    *_ENDINGS.linear("cls.predictions.transform.dense", "head/dense"),
    *_ENDINGS.norm("cls.predictions.transform.LayerNorm", "head/norm"),
    Row(_BIAS, "head/bias"),
    Row(_DECODER, "head/output"),
    *_ENDINGS.linear("cls.seq_relationship", "next_sentence"),
    *_ENDINGS.linear("classifier", "classifier"),
)


# Model parts of each transformers class.
_CLASSES: Mapping[str, tuple[str, ...]] = {
    "BertForPreTraining": ("encoder", "head", "next_sentence"),
    "BertForMaskedLM": ("encoder", "head"),
    "BertForSequenceClassification": ("encoder", "classifier"),
    "BertModel": ("encoder",),
}


def recognizes(folder: Path) -> bool:
    """Returns True if transformers wrote the folder, for any architecture."""
    return "model_type" in read_json_object(folder / _CONFIG)


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


def read_architecture(folder: Path) -> tuple[BertConfig, Tokenizer]:
    """Returns the config and the tokenizer without reading weights; with a pooler if the class has one."""
    settings = read_json_object(folder / _CONFIG)
    config = _config(folder / _CONFIG, settings)
    pooler = "BertForMaskedLM" not in (settings.get("architectures") or ())
    return replace(config, pooler=pooler), Tokenizer.load(folder)


def read(folder: Path) -> Reading:
    """Reads the model of a folder.

    Raises:
        InputError: the class is not supported, a file is missing or damaged, a tensor is missing, unknown or of the
            wrong shape, or the tokenizer has a different vocabulary size.
    """
    settings = read_json_object(folder / _CONFIG)
    config = _config(folder / _CONFIG, settings)
    with ExitStack() as stack:
        tensors, files = open_weights(folder, stack)
        num_tensors = len(tensors)
        tensors, dropped = _canonical(folder, tensors, tied=config.tie_embeddings)
        config = replace(config, pooler="bert.pooler.dense.weight" in tensors)
        tokenizer = Tokenizer.load(folder)
        check_vocabulary(folder, config, tokenizer)
        labels = _labels(settings) if "classifier.weight" in tensors else None
        parameters = declared_parameters(config, parts_in(ROWS, tensors), len(labels or ()))
        params = read_params(folder, ROWS, parameters, tensors)
    return Reading(StoredModel(config, params, tokenizer, labels), num_tensors, dropped, files)


def _config(file: Path, settings: Mapping[str, Any]) -> BertConfig:
    if settings["model_type"] != "bert":
        raise InputError(f"{file}: model_type {settings['model_type']!r} is not supported: must be 'bert'")
    for name in settings.get("architectures") or ():
        if name not in _CLASSES:
            raise InputError(
                f"{file}: architecture {name} is not supported: must be one of {', '.join(_CLASSES)}"
            )
    # transformers writes every setting, but other programs rely on the defaults of its BertConfig.
    unsupported = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}
    for name, only in unsupported.items():
        if (settings.get(name) or only) != only:
            raise InputError(f"{file}: {name} = {settings[name]!r} is not supported: must be {only!r}")
    activation = settings.get("hidden_act", "gelu")
    if activation not in _ACTIVATIONS:
        raise InputError(
            f"{file}: hidden_act {activation!r} is not supported: must be one of {', '.join(_ACTIVATIONS)}"
        )
    epsilon = float(settings.get("layer_norm_eps", 1e-12))
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


def _canonical(
    folder: Path, tensors: Mapping[str, Tensor], *, tied: bool
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors under the names of the table, and the redundant tensors with the reason to drop them."""
    renamed: dict[str, Tensor] = {}
    bare = not any(name.startswith(_ENCODER_PREFIX) for name in tensors)
    for name, tensor in tensors.items():
        new = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        if bare and new.startswith(("embeddings.", "encoder.", "pooler.")):
            new = _ENCODER_PREFIX + new
        if new in renamed:
            raise InputError(f"{folder}: tensor {name} exists under two names")
        renamed[new] = tensor
    dropped: dict[str, str] = {}

    def same(first: str, second: str) -> bool:
        return np.array_equal(renamed[first].read(), renamed[second].read())

    if _POSITIONS in renamed:
        values = renamed.pop(_POSITIONS).read().reshape(-1)
        if not np.array_equal(values, np.arange(len(values))):
            raise InputError(f"{folder}: {_POSITIONS} is not 0, 1, 2, …: other positions are not supported")
        dropped[_POSITIONS] = "a constant: 0, 1, 2, …"
    if _DECODER_BIAS in renamed:
        if _BIAS not in renamed:
            renamed[_BIAS] = renamed[_DECODER_BIAS]
        elif same(_BIAS, _DECODER_BIAS):
            dropped[_DECODER_BIAS] = f"the same numbers as {_BIAS}"
        elif tied:
            raise InputError(f"{folder}: tied, but {_DECODER_BIAS} is not {_BIAS}: must be equal")
        else:
            # If untied, transformers 5 adds the decoder's bias and never reads the other bias.
            renamed[_BIAS] = renamed[_DECODER_BIAS]
            dropped[_BIAS] = f"not read if the decoder is untied: {_DECODER_BIAS} is added instead"
        renamed.pop(_DECODER_BIAS)
    if tied and _DECODER in renamed:
        if not same(_DECODER, _TOKENS):
            raise InputError(
                f"{folder}: tie_word_embeddings is true, but {_DECODER} is not the word embedding: must be equal"
            )
        dropped[_DECODER] = f"tied: the same numbers as {_TOKENS}"
        renamed.pop(_DECODER)
    return renamed, dropped


def _labels(settings: Mapping[str, Any]) -> tuple[str, ...]:
    names = settings.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    return tuple(str(names[key]) for key in sorted(names, key=int))


def class_of(model: StoredModel) -> str:
    """Returns the transformers class with the model's parts. Raises InputError if there is none."""
    for name, parts in _CLASSES.items():
        if set(parts) == set(model.params):
            return name
    raise InputError(f"no class of transformers has exactly the parts {', '.join(sorted(model.params))}")


def write(model: StoredModel, folder: Path) -> int:
    """Writes the folder's files and returns the number of tensors. The config must be `expressible`."""
    class_name = class_of(model)
    prefix = _ENCODER_PREFIX if class_name == "BertModel" else ""
    tensors = {
        name.removeprefix(prefix): array
        for name, array in write_params(ROWS, parameters_of(model), model.params)
    }
    if "head" in model.params and not model.config.tie_embeddings:
        # transformers 5 adds this bias, transformers 4 the other.
        tensors[_DECODER_BIAS] = tensors[_BIAS]
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
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
    return settings


def outputs(folder: Path, batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns the outputs of transformers; see `mlm_jax.store.reference_outputs`."""
    import torch
    import transformers

    name = (read_json_object(folder / _CONFIG).get("architectures") or ["BertForMaskedLM"])[0]
    model = getattr(transformers, name).from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    )
    with torch.no_grad():
        computed = model.eval()(
            input_ids=torch.from_numpy(batch["token_ids"]).long(),
            attention_mask=torch.from_numpy(batch["padding_mask"]).long(),
            token_type_ids=torch.from_numpy(batch["segment_ids"]).long(),
        )
    first = "prediction_logits" if name == "BertForPreTraining" else "logits"
    return (computed.last_hidden_state if name == "BertModel" else computed[first]).numpy()
