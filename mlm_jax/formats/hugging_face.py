"""Hugging Face's BERT folders: config.json, model.safetensors or pytorch_model.bin, vocab.txt or tokenizer.json.

`BertModel`, `BertForMaskedLM`, `BertForPreTraining` and `BertForSequenceClassification` of transformers.
"""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from safetensors.numpy import save_file

from mlm_jax.config.model import Activation, BertConfig, HeadActivation
from mlm_jax.errors import InputError
from mlm_jax.files import write_atomically
from mlm_jax.formats.bert_config import require_bert
from mlm_jax.formats.model_folder import (
    StoredModel,
    check_vocabulary,
    parameter_shapes,
    read_json_object,
)
from mlm_jax.formats.name_table import Reading, Row, Tensor, linear, norm, read_params, write_params
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

# Beside the names of the table, a module without BertModel around it leaves out "bert.".
_ENCODER_PREFIX = "bert."
_DECODER = "cls.predictions.decoder."


def _linear(name: str, path: str) -> tuple[Row, Row]:
    return linear(name, path, weight=".weight", bias=".bias", layout="out_in")


def _norm(name: str, path: str) -> tuple[Row, Row]:
    return norm(name, path, scale=".weight", bias=".bias")


_LAYER, _LAYERS = "bert.encoder.layer.{layer}", "encoder/layers"
ROWS: tuple[Row, ...] = (
    Row("bert.embeddings.word_embeddings.weight", "encoder/embeddings/token"),
    Row("bert.embeddings.position_embeddings.weight", "encoder/embeddings/position"),
    Row("bert.embeddings.token_type_embeddings.weight", "encoder/embeddings/segment"),
    *_norm("bert.embeddings.LayerNorm", "encoder/embeddings/norm"),
    *_linear(f"{_LAYER}.attention.self.query", f"{_LAYERS}/attention/query"),
    *_linear(f"{_LAYER}.attention.self.key", f"{_LAYERS}/attention/key"),
    *_linear(f"{_LAYER}.attention.self.value", f"{_LAYERS}/attention/value"),
    *_linear(f"{_LAYER}.attention.output.dense", f"{_LAYERS}/attention/output"),
    *_norm(f"{_LAYER}.attention.output.LayerNorm", f"{_LAYERS}/attention_norm"),
    *_linear(f"{_LAYER}.intermediate.dense", f"{_LAYERS}/feed_forward/up"),
    *_linear(f"{_LAYER}.output.dense", f"{_LAYERS}/feed_forward/down"),
    *_norm(f"{_LAYER}.output.LayerNorm", f"{_LAYERS}/feed_forward_norm"),
    *_linear("bert.pooler.dense", "encoder/pooler"),
    *_linear("cls.predictions.transform.dense", "head/dense"),
    *_norm("cls.predictions.transform.LayerNorm", "head/norm"),
    Row("cls.predictions.bias", "head/bias"),
    Row("cls.predictions.decoder.weight", "head/output"),
    *_linear("cls.seq_relationship", "next_sentence"),
    *_linear("classifier", "classifier"),
)


class _Architecture(NamedTuple):
    """What a class of transformers is made of; its tensors begin with `prefix`."""

    parts: tuple[str, ...]
    prefix: str


_ARCHITECTURES: Mapping[str, _Architecture] = {
    "BertForPreTraining": _Architecture(("encoder", "head", "next_sentence"), ""),
    "BertForMaskedLM": _Architecture(("encoder", "head"), ""),
    "BertForSequenceClassification": _Architecture(("encoder", "classifier"), ""),
    "BertModel": _Architecture(("encoder",), _ENCODER_PREFIX),
}


def recognises(folder: Path) -> bool:
    """Whether the folder is one of transformers, of whatever architecture."""
    return "model_type" in read_json_object(folder / _CONFIG)


def expressible(config: BertConfig) -> BertConfig:
    """The nearest config that a config.json can say: one activation and one epsilon for encoder and head.

    Raises:
        InputError: the architecture is another one than BERT.
    """
    return replace(
        require_bert(NAME, config),
        embedding_dropout=True,
        head_activation=cast(HeadActivation, config.activation),
        head_layer_norm_epsilon=config.layer_norm_epsilon,
    )


def read_architecture(folder: Path) -> tuple[BertConfig, Tokenizer]:
    """The config and the tokenizer, without a weight; a pooler where the architecture has one."""
    settings = read_json_object(folder / _CONFIG)
    config = _config(folder / _CONFIG, settings)
    pooler = "BertForMaskedLM" not in (settings.get("architectures") or ())
    return replace(config, pooler=pooler), Tokenizer.load(folder)


def read(folder: Path) -> Reading:
    """The model of a folder.

    Raises:
        InputError: the architecture is not one of the four, a file is missing or damaged, a tensor is missing,
            extra or of another shape, or the tokenizer has another vocabulary size.
    """
    settings = read_json_object(folder / _CONFIG)
    config = _config(folder / _CONFIG, settings)
    with ExitStack() as stack:
        tensors, files = open_weights(folder, stack)
        num_tensors = len(tensors)
        tensors, dropped = _canonical(folder, tensors, tied=config.tie_embeddings)
        parts = _parts(tensors)
        config = replace(config, pooler="bert.pooler.dense.weight" in tensors)
        tokenizer = Tokenizer.load(folder)
        check_vocabulary(folder, config, tokenizer)
        labels = _labels(settings, tensors)
        shapes = parameter_shapes(config, parts, len(labels or ()))
        params = read_params(folder, ROWS, shapes, tensors)
    return Reading(StoredModel(config, params, tokenizer, labels), num_tensors, dropped, files)


def _config(file: Path, settings: Mapping[str, Any]) -> BertConfig:
    if settings["model_type"] != "bert":
        raise InputError(f"{file}: model_type {settings['model_type']!r} is not supported: must be 'bert'")
    for name in settings.get("architectures") or ():
        if name not in _ARCHITECTURES:
            raise InputError(
                f"{file}: architecture {name} is not supported: must be one of {', '.join(_ARCHITECTURES)}"
            )
    # transformers leaves out nothing, but folders that others wrote rely on the defaults of its BertConfig.
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
    try:
        config = BertConfig(
            vocabulary_size=settings.get("vocab_size", 30_522),
            num_layers=settings.get("num_hidden_layers", 12),
            hidden_dim=settings.get("hidden_size", 768),
            num_heads=settings.get("num_attention_heads", 12),
            intermediate_dim=settings.get("intermediate_size", 3072),
            max_sequence_length=settings.get("max_position_embeddings", 512),
            num_segments=settings.get("type_vocab_size", 2),
            activation=_ACTIVATIONS[activation],
            head_activation=_ACTIVATIONS[activation],
            layer_norm_epsilon=epsilon,
            head_layer_norm_epsilon=epsilon,
            dropout_rate=settings.get("hidden_dropout_prob", 0.1),
            attention_dropout_rate=settings.get("attention_probs_dropout_prob", 0.1),
            tie_embeddings=settings.get("tie_word_embeddings", True),
            initializer_stddev=settings.get("initializer_range", 0.02),
        )
        return require_bert(NAME, config)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def _canonical(
    folder: Path, tensors: Mapping[str, Tensor], *, tied: bool
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors under the table's names, and those that repeat others, with the reason to drop them."""
    renamed: dict[str, Tensor] = {}
    bare = not any(name.startswith(_ENCODER_PREFIX) for name in tensors)
    for name, tensor in tensors.items():
        new = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        if bare and new.startswith(("embeddings.", "encoder.", "pooler.")):
            new = _ENCODER_PREFIX + new
        if new in renamed:
            raise InputError(f"{folder}: tensor {name} is there under two names")
        renamed[new] = tensor
    dropped: dict[str, str] = {}

    def same(first: str, second: str) -> bool:
        return np.array_equal(renamed[first].read(), renamed[second].read())

    positions = "bert.embeddings.position_ids"
    if positions in renamed:
        values = renamed[positions].read().reshape(-1)
        if not np.array_equal(values, np.arange(len(values))):
            raise InputError(f"{folder}: {positions} is not 0, 1, 2, …: other positions are not supported")
        dropped[positions] = "a constant: 0, 1, 2, …"
    bias, decoder_bias, decoder = "cls.predictions.bias", f"{_DECODER}bias", f"{_DECODER}weight"
    if decoder_bias in renamed:
        if bias not in renamed:
            renamed[bias] = renamed[decoder_bias]
        elif same(bias, decoder_bias):
            dropped[decoder_bias] = f"the same numbers as {bias}"
        elif tied:
            raise InputError(f"{folder}: tied, but {decoder_bias} is not {bias}: must be equal")
        else:
            # Untied, transformers 5 adds the decoder's bias and never reads the other one.
            renamed[bias] = renamed[decoder_bias]
            dropped[bias] = f"not read where the decoder is untied: {decoder_bias} is what is added"
        renamed.pop(decoder_bias)
    if tied and decoder in renamed:
        if not same(decoder, "bert.embeddings.word_embeddings.weight"):
            raise InputError(
                f"{folder}: tie_word_embeddings is true, but {decoder} is not the word embedding: must be equal"
            )
        dropped[decoder] = "tied: the same numbers as bert.embeddings.word_embeddings.weight"
        renamed.pop(decoder)
    renamed.pop(positions, None)
    return renamed, dropped


def _parts(tensors: Mapping[str, Tensor]) -> list[str]:
    first_names = {
        "head": "cls.predictions.",
        "next_sentence": "cls.seq_relationship.",
        "classifier": "classifier.",
    }
    found = [part for part, start in first_names.items() if any(name.startswith(start) for name in tensors)]
    return ["encoder", *found]


def _labels(settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[str, ...] | None:
    if "classifier.weight" not in tensors:
        return None
    names = settings.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}
    return tuple(str(names[key]) for key in sorted(names, key=int))


def architecture_of(model: StoredModel) -> str:
    """The class of transformers that has the model's parts; InputError where none has."""
    parts = set(model.params)
    for name, architecture in _ARCHITECTURES.items():
        if parts == set(architecture.parts):
            return name
    raise InputError(f"no class of transformers has the parts {', '.join(sorted(parts))} and no others")


def write(model: StoredModel, folder: Path) -> int:
    """Write the folder's files; returns the number of tensors. The config must be `expressible`."""
    name = architecture_of(model)
    prefix = _ARCHITECTURES[name].prefix
    tensors = {n.removeprefix(prefix): array for n, array in write_params(ROWS, model.params)}
    if "head" in model.params and not model.config.tie_embeddings:
        # transformers 5 adds this one, transformers 4 the other; both find theirs.
        tensors[f"{_DECODER}bias"] = tensors["cls.predictions.bias"]
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    settings = _settings(model, name)
    write_atomically(folder / _CONFIG, (json.dumps(settings, indent=2, sort_keys=True) + "\n").encode())
    model.tokenizer.save(folder)
    tokenizer_settings = {
        "tokenizer_class": "BertTokenizer",
        "model_max_length": model.config.max_sequence_length,
    } | model.tokenizer.bert_settings()
    write_atomically(
        folder / "tokenizer_config.json", (json.dumps(tokenizer_settings, indent=2) + "\n").encode()
    )
    return len(tensors)


def _settings(model: StoredModel, architecture: str) -> dict[str, Any]:
    config, dtype = model.config, str(model.params["encoder"]["embeddings"]["token"].dtype)
    settings: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": "bert",
        "vocab_size": config.vocabulary_size,
        "num_hidden_layers": config.num_layers,
        "hidden_size": config.hidden_dim,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.intermediate_dim,
        "max_position_embeddings": config.max_sequence_length,
        "type_vocab_size": config.num_segments,
        "hidden_act": _ACTIVATION_NAMES[config.activation],
        "layer_norm_eps": config.layer_norm_epsilon,
        "hidden_dropout_prob": config.dropout_rate,
        "attention_probs_dropout_prob": config.attention_dropout_rate,
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.initializer_stddev,
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
    """What transformers itself computes: see `mlm_jax.store.reference_outputs`."""
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
