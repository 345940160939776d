"""Google's BERT checkpoints for TensorFlow 1: bert_config.json, vocab.txt, bert_model.ckpt.*.

As google-research/bert writes and reads them: pretraining (masked LM and next sentence) and sentence classification.
"""

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from mlm_jax.config.model import BertConfig, HeadActivation
from mlm_jax.errors import InputError
from mlm_jax.files import write_atomically
from mlm_jax.formats.bert_config import require_bert
from mlm_jax.formats.model_folder import StoredModel, check_vocabulary, parameter_shapes, read_json_object
from mlm_jax.formats.name_table import Reading, Row, Tensor, linear, norm, read_params, write_params
from mlm_jax.text.tokenizer import Tokenizer

NAME = "google_tf"
DROPPED_PARTS: Mapping[str, str] = {}
NEEDS_POOLER = False

_CONFIG = "bert_config.json"
_PREFIX = "bert_model.ckpt"

# Google's code has computed "gelu" by erf until February 2019 and by tanh since, under one name. What it does
# today is what a config without our key means; the key is one that Google's code reads over.
_GELU_KEY = "gelu"
_GELUS: Mapping[str, HeadActivation] = {"erf": "gelu", "tanh": "gelu_tanh"}
_EPSILON = 1e-12
_GROUP_BYTES = 1 << 27

_OPTIMIZER_STATE = re.compile(r".*/adam_[mv]|.*/Adam(_1)?|(.*/)?global_step|(.*/)?beta[12]_power")


def _linear(name: str, path: str) -> tuple[Row, Row]:
    return linear(name, path, weight="/kernel", bias="/bias", layout="in_out")


def _norm(name: str, path: str) -> tuple[Row, Row]:
    return norm(name, path, scale="/gamma", bias="/beta")


_LAYER, _LAYERS = "bert/encoder/layer_{layer}", "encoder/layers"
ROWS: tuple[Row, ...] = (
    Row("bert/embeddings/word_embeddings", "encoder/embeddings/token"),
    Row("bert/embeddings/position_embeddings", "encoder/embeddings/position"),
    Row("bert/embeddings/token_type_embeddings", "encoder/embeddings/segment"),
    *_norm("bert/embeddings/LayerNorm", "encoder/embeddings/norm"),
    *_linear(f"{_LAYER}/attention/self/query", f"{_LAYERS}/attention/query"),
    *_linear(f"{_LAYER}/attention/self/key", f"{_LAYERS}/attention/key"),
    *_linear(f"{_LAYER}/attention/self/value", f"{_LAYERS}/attention/value"),
    *_linear(f"{_LAYER}/attention/output/dense", f"{_LAYERS}/attention/output"),
    *_norm(f"{_LAYER}/attention/output/LayerNorm", f"{_LAYERS}/attention_norm"),
    *_linear(f"{_LAYER}/intermediate/dense", f"{_LAYERS}/feed_forward/up"),
    *_linear(f"{_LAYER}/output/dense", f"{_LAYERS}/feed_forward/down"),
    *_norm(f"{_LAYER}/output/LayerNorm", f"{_LAYERS}/feed_forward_norm"),
    *_linear("bert/pooler/dense", "encoder/pooler"),
    *_linear("cls/predictions/transform/dense", "head/dense"),
    *_norm("cls/predictions/transform/LayerNorm", "head/norm"),
    Row("cls/predictions/output_bias", "head/bias"),
    Row("cls/seq_relationship/output_weights", "next_sentence/kernel", "out_in"),
    Row("cls/seq_relationship/output_bias", "next_sentence/bias"),
    Row("output_weights", "classifier/kernel", "out_in"),
    Row("output_bias", "classifier/bias"),
)
_FIRST_NAMES = {
    "head": "cls/predictions/",
    "next_sentence": "cls/seq_relationship/",
    "classifier": "output_weights",
}


def recognises(folder: Path) -> bool:
    """Whether the folder has Google's config."""
    return (folder / _CONFIG).is_file()


def expressible(config: BertConfig) -> BertConfig:
    """The nearest config: one GELU for encoder and head, every epsilon 1e-12, tied.

    Raises:
        InputError: the architecture is another one than BERT.
    """
    return replace(
        require_bert(NAME, config),
        embedding_dropout=True,
        head_activation=cast(HeadActivation, config.activation),
        layer_norm_epsilon=_EPSILON,
        head_layer_norm_epsilon=_EPSILON,
    )


def read_architecture(folder: Path) -> tuple[BertConfig, Tokenizer]:
    """The config and the tokenizer, without a weight; with a pooler, as Google's model has one."""
    return _config(folder / _CONFIG), Tokenizer.load(folder)


def read(folder: Path) -> Reading:
    """The model of a folder.

    Raises:
        InputError: TensorFlow is not installed, a file is missing or damaged, a tensor is missing, extra or of
            another shape, or the tokenizer has another vocabulary size.
    """
    config, tokenizer = read_architecture(folder)
    check_vocabulary(folder, config, tokenizer)
    prefix = _prefix(folder)
    tensors = _open(prefix)
    dropped = {name: "state of the optimizer" for name in tensors if _OPTIMIZER_STATE.fullmatch(name)}
    weights = {name: tensor for name, tensor in tensors.items() if name not in dropped}
    found = [part for part, start in _FIRST_NAMES.items() if any(name.startswith(start) for name in weights)]
    config = replace(config, pooler="bert/pooler/dense/kernel" in weights)
    classes = weights["output_weights"].shape[0] if "classifier" in found else 0
    shapes = parameter_shapes(config, ["encoder", *found], classes)
    params = read_params(prefix, ROWS, shapes, weights)
    labels = tuple(f"LABEL_{index}" for index in range(classes)) or None
    files = sorted(folder.glob(f"{prefix.name}.*"))
    return Reading(StoredModel(config, params, tokenizer, labels), len(tensors), dropped, files)


def _config(file: Path) -> BertConfig:
    settings = read_json_object(file)
    gelu = settings.get(_GELU_KEY, "tanh")
    for key, value, known in (
        ("hidden_act", settings.get("hidden_act", "gelu"), ("gelu",)),
        (_GELU_KEY, gelu, _GELUS),
    ):
        if value not in known:
            raise InputError(f"{file}: {key} {value!r} is not supported: must be {' or '.join(known)}")
    names = {
        "vocab_size": "vocabulary_size",
        "num_hidden_layers": "num_layers",
        "hidden_size": "hidden_dim",
        "num_attention_heads": "num_heads",
        "intermediate_size": "intermediate_dim",
        "max_position_embeddings": "max_sequence_length",
        "type_vocab_size": "num_segments",
        "hidden_dropout_prob": "dropout_rate",
        "attention_probs_dropout_prob": "attention_dropout_rate",
        "initializer_range": "initializer_stddev",
    }
    if "vocab_size" not in settings:
        raise InputError(f"{file}: no vocab_size: Google's config has one")
    try:
        config = BertConfig(
            **{ours: settings[theirs] for theirs, ours in names.items() if theirs in settings},
            activation=_GELUS[gelu],
            head_activation=_GELUS[gelu],
        )
        return require_bert(NAME, config)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def _prefix(folder: Path) -> Path:
    """What the names of the checkpoint's files begin with."""
    indices = sorted(folder.glob("*.index"))
    if len(indices) != 1:
        found = ", ".join(file.name for file in indices) or "none"
        raise InputError(f"{folder}: {found}: must hold one checkpoint, {_PREFIX}.index and its data")
    return indices[0].with_suffix("")


def _tensorflow(where: Path) -> Any:
    try:
        with _silent_stderr():
            import tensorflow as tf

            # The first operation looks for devices, which it tells of too.
            tf.constant(0)
    except ImportError as error:
        raise InputError(
            f"{where}: Google's checkpoints need TensorFlow: pip install 'mlm-jax[convert]'"
        ) from error
    return tf


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """TensorFlow's libraries tell of missing GPUs, as errors, on every start, whatever its log level is."""
    sys.stderr.flush()
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _open(prefix: Path) -> dict[str, Tensor]:
    tf = _tensorflow(prefix)
    try:
        reader = tf.train.load_checkpoint(str(prefix))
    # TensorFlow raises errors of its own and bare ValueErrors for what it cannot open.
    except Exception as error:
        raise InputError(f"{prefix}.*: damaged or cut off: {_one_line(error)}") from error

    def read_tensor(name: str) -> np.ndarray:
        try:
            return np.asarray(reader.get_tensor(name))
        except Exception as error:
            raise InputError(f"{prefix}.*: tensor {name}: damaged or cut off: {_one_line(error)}") from error

    shapes = reader.get_variable_to_shape_map()
    return {name: Tensor(tuple(shape), partial(read_tensor, name)) for name, shape in shapes.items()}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def write(model: StoredModel, folder: Path) -> int:
    """Write the folder's files; returns the number of tensors. The config must be `expressible`.

    Raises:
        InputError: the head is untied, the tokenizer is not BERT's, or TensorFlow is not installed.
    """
    if not model.config.tie_embeddings:
        raise InputError("the head is untied: Google's is tied to the word embeddings")
    tokenizer_settings = model.tokenizer.bert_settings()
    tf = _tensorflow(folder)
    count, parts = 0, folder / "parts"
    prefixes: list[str] = []
    for names, arrays in _groups(write_params(ROWS, model.params)):
        prefixes.append(str(parts / str(len(prefixes))))
        tf.raw_ops.SaveV2(
            prefix=prefixes[-1],
            tensor_names=names,
            shape_and_slices=[""] * len(names),
            tensors=[tf.convert_to_tensor(array) for array in arrays],
        )
        count += len(names)
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=prefixes, destination_prefix=str(folder / _PREFIX), delete_old_dirs=True
    )
    model.tokenizer.save_vocabulary(folder / "vocab.txt")
    files = {_CONFIG: _settings(model.config), "tokenizer_config.json": tokenizer_settings}
    for name, content in files.items():
        write_atomically(folder / name, (json.dumps(content, indent=2) + "\n").encode())
    return count


def _groups(tensors: Iterator[tuple[str, np.ndarray]]) -> Iterator[tuple[list[str], list[np.ndarray]]]:
    """Consecutive tensors of about 128 MB together: TensorFlow holds a second copy of what it saves at once."""
    names: list[str] = []
    arrays: list[np.ndarray] = []
    for name, array in tensors:
        names.append(name)
        arrays.append(array)
        if sum(held.nbytes for held in arrays) >= _GROUP_BYTES:
            yield names, arrays
            names, arrays = [], []
    if names:
        yield names, arrays


def _settings(config: BertConfig) -> dict[str, Any]:
    return {
        "attention_probs_dropout_prob": config.attention_dropout_rate,
        _GELU_KEY: next(name for name, kind in _GELUS.items() if kind == config.activation),
        "hidden_act": "gelu",
        "hidden_dropout_prob": config.dropout_rate,
        "hidden_size": config.hidden_dim,
        "initializer_range": config.initializer_stddev,
        "intermediate_size": config.intermediate_dim,
        "max_position_embeddings": config.max_sequence_length,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "type_vocab_size": config.num_segments,
        "vocab_size": config.vocabulary_size,
    }


def outputs(folder: Path, batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """What Google's own code computes: see `mlm_jax.store.reference_outputs` and `run_google_bert`.

    Raises:
        ImportError: TensorFlow, tf_keras or the package bert-tensorflow is not installed.
    """
    from mlm_jax.formats.run_google_bert import run_google_bert

    by_erf = _config(folder / _CONFIG).activation == "gelu"
    return run_google_bert(folder / _CONFIG, _prefix(folder), batch, gelu_by_erf=by_erf)
