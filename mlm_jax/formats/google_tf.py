"""Google's BERT checkpoints for TensorFlow 1: bert_config.json, vocab.txt, bert_model.ckpt.*.

Supports the checkpoints of google-research/bert for pretraining (masked LM and next sentence) and for classification.
"""

import contextlib
import os
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from mlm_jax.config.model import BertConfig, HeadActivation
from mlm_jax.errors import InputError, one_line
from mlm_jax.families.conventions import BERT_CONVENTIONS, require, require_bert
from mlm_jax.families.names import Endings, Row
from mlm_jax.families.settings import BERT_SETTINGS, config_from_settings, settings_from_config
from mlm_jax.files.json_files import read_json_object
from mlm_jax.formats.model_folder import (
    StoredModel,
    check_pooler,
    check_vocabulary,
    declared_parameters,
    flatten_params,
    parameters_of,
    spare_rows,
    unnamed_classes,
    write_json,
)
from mlm_jax.formats.name_table import Reading, Tensor, parts_in, paths_of, read_params, write_params
from mlm_jax.text.tokenizer import Tokenizer

NAME = "google_tf"
DROPPED_PARTS: Mapping[str, str] = {
    "token_classifier": "Google's code has no head for tokens",
    "question_answering": "Google's code has no head for answers",
}

_CONFIG = "bert_config.json"
_PREFIX = "bert_model.ckpt"

# Google's code computed "gelu" with erf until February 2019 and has used tanh since then, under the same name. Configs
# without our key are read as tanh. Google's code ignores the key.
_GELU_KEY = "gelu"
_GELUS: Mapping[str, HeadActivation] = {"erf": "gelu", "tanh": "gelu_tanh"}
_EPSILON = 1e-12
_GROUP_BYTES = 1 << 27

_ENCODER_PREFIX = "bert/"
# The file in which TensorFlow names the newest of several checkpoints in a folder.
_STATE_FILE = "checkpoint"
_STATE_BYTES = 1 << 20
_NEWEST = re.compile(r'^model_checkpoint_path:\s*"([^"\n]*)"\s*$', re.MULTILINE)

_ENDINGS = Endings(kernel="/kernel", bias="/bias", scale="/gamma", offset="/beta", layout="flat")
_LAYER, _LAYERS = "bert/encoder/layer_{layer}", "encoder/layers"
ROWS: tuple[Row, ...] = (
    Row("bert/embeddings/word_embeddings", "encoder/embeddings/token"),
    Row("bert/embeddings/position_embeddings", "encoder/embeddings/position"),
    Row("bert/embeddings/token_type_embeddings", "encoder/embeddings/segment"),
    *_ENDINGS.norm("bert/embeddings/LayerNorm", "encoder/embeddings/norm"),
    *_ENDINGS.linear(f"{_LAYER}/attention/self/query", f"{_LAYERS}/attention/query"),
    *_ENDINGS.linear(f"{_LAYER}/attention/self/key", f"{_LAYERS}/attention/key"),
    *_ENDINGS.linear(f"{_LAYER}/attention/self/value", f"{_LAYERS}/attention/value"),
    *_ENDINGS.linear(f"{_LAYER}/attention/output/dense", f"{_LAYERS}/attention/output"),
    *_ENDINGS.norm(f"{_LAYER}/attention/output/LayerNorm", f"{_LAYERS}/attention_norm"),
    *_ENDINGS.linear(f"{_LAYER}/intermediate/dense", f"{_LAYERS}/feed_forward/up"),
    *_ENDINGS.linear(f"{_LAYER}/output/dense", f"{_LAYERS}/feed_forward/down"),
    *_ENDINGS.norm(f"{_LAYER}/output/LayerNorm", f"{_LAYERS}/feed_forward_norm"),
    *_ENDINGS.linear("bert/pooler/dense", "encoder/pooler"),
    *_ENDINGS.linear("cls/predictions/transform/dense", "head/dense"),
    *_ENDINGS.norm("cls/predictions/transform/LayerNorm", "head/norm"),
    Row("cls/predictions/output_bias", "head/bias"),
    Row("cls/seq_relationship/output_weights", "next_sentence/kernel", "out_in"),
    Row("cls/seq_relationship/output_bias", "next_sentence/bias"),
    Row("output_weights", "classifier/kernel", "out_in"),
    Row("output_bias", "classifier/bias"),
)


def recognizes(folder: Path) -> bool:
    """Returns True if the folder has Google's config."""
    return (folder / _CONFIG).is_file()


def expressible(config: BertConfig) -> BertConfig:
    """Returns the nearest expressible config: the same GELU in encoder and head, and epsilons of 1e-12.

    Raises:
        InputError: the architecture is not BERT's, or the head is untied.
    """
    return replace(
        require_bert(NAME, config, tied=True),
        embedding_dropout=True,
        pooler_kind="tanh",
        pooling="cls",
        head_activation=cast(HeadActivation, config.activation),
        layer_norm_epsilon=_EPSILON,
        head_layer_norm_epsilon=_EPSILON,
    )


def poolers(config: BertConfig, parts: Collection[str]) -> tuple[bool, ...]:
    """Returns the possible values of `config.pooler`."""
    return (True, False)


def read_architecture(folder: Path) -> StoredModel:
    """Reads everything but the parameters. Google's model always has a pooler, and its config states no classes."""
    return StoredModel(_config(folder / _CONFIG), {}, Tokenizer.load(folder))


def read(folder: Path) -> Reading:
    """Reads the model of a folder.

    Raises:
        InputError: TensorFlow is not installed, a file is missing or damaged, a tensor is missing, unknown, of the
            wrong shape or not finite, or the tokenizer has more entries than the model.
    """
    model = read_architecture(folder)
    check_vocabulary(folder, model.config, model.tokenizer)
    prefix = _prefix(folder)
    tensors = _open(prefix)
    dropped, left_out = _without_weights(tensors)
    weights = {name: tensor for name, tensor in tensors.items() if name not in {*dropped, *left_out}}
    config = replace(model.config, pooler="bert/pooler/dense/kernel" in weights)
    parts = parts_in(ROWS, weights)
    check_pooler(prefix, config, parts)
    classes = weights["output_bias"].size if "output_bias" in weights else 0
    parameters = declared_parameters(config, parts, classes)
    params = read_params(prefix, ROWS, parameters, weights)
    labels = unnamed_classes(classes) or None
    notes = spare_rows(config, model.tokenizer)
    if (newest := _newest(folder)) not in (None, prefix.name):
        notes.append(
            f"read: {prefix.name}, the only checkpoint here; the newest in the file {_STATE_FILE} is {newest}"
        )
    if left_out:
        notes.append(f"left out: {', '.join(left_out)} (of another head)")
    files = sorted(path for path in folder.iterdir() if path.name.startswith(f"{prefix.name}."))
    paths = dict.fromkeys(tensors, ()) | paths_of(ROWS, parameters)
    return Reading(StoredModel(config, params, model.tokenizer, labels), paths, dropped, notes, files)


def _without_weights(tensors: Mapping[str, Tensor]) -> tuple[dict[str, str], list[str]]:
    """Returns the variables of the training, with the reason to drop them, and those of heads that we do not have."""
    single = re.compile("|".join(row.name.replace("{layer}", r"\d+") for row in ROWS))
    dropped, left_out = {}, []
    for name, tensor in sorted(tensors.items()):
        if single.fullmatch(name):
            continue
        # An optimizer's variables have the name of a weight and a suffix, such as adam_m, lamb_v or Momentum.
        if single.fullmatch(name.rpartition("/")[0]):
            dropped[name] = "state of the optimizer"
        elif tensor.shape == ():
            dropped[name] = "a scalar of the training, such as the step or the loss scale"
        elif not name.startswith(_ENCODER_PREFIX):
            left_out.append(name)
    return dropped, left_out


def _config(file: Path) -> BertConfig:
    settings = read_json_object(file)
    gelu = settings.get(_GELU_KEY, "tanh")
    for key, value, known in (
        ("hidden_act", settings.get("hidden_act", "gelu"), ("gelu",)),
        (_GELU_KEY, gelu, _GELUS),
    ):
        if not isinstance(value, str) or value not in known:
            raise InputError(f"{file}: {key} {value!r} is not supported: must be {' or '.join(known)}")
    if "vocab_size" not in settings:
        raise InputError(f"{file}: no vocab_size: Google's config has one")
    activation = _GELUS[gelu]
    config = config_from_settings(
        file, settings, BERT_SETTINGS, activation=activation, head_activation=activation
    )
    return require(NAME, config, BERT_CONVENTIONS, "BERT", file)


def _prefix(folder: Path) -> Path:
    """Returns the common prefix of the paths of the checkpoint's files, of several that of the newest.

    Raises:
        InputError: there is no checkpoint, or there are several and the file `checkpoint` names none of them.
    """
    names = sorted(file.name.removesuffix(".index") for file in folder.glob("*.index"))
    if len(names) > 1 and (newest := _newest(folder)) in names:
        names = [newest]
    if len(names) != 1:
        found = ", ".join(f"{name}.index" for name in names) or "none"
        raise InputError(
            f"{folder}: {found}: must contain one checkpoint, {_PREFIX}.index and its data, or a file "
            f"{_STATE_FILE} that names the newest"
        )
    return folder / names[0]


def _newest(folder: Path) -> str | None:
    """Returns the checkpoint that the file `checkpoint` names as the newest, if any."""
    state = folder / _STATE_FILE
    if not state.is_file():
        return None
    with state.open("rb") as opened:
        # The newest is the first line; those that follow are older.
        match = _NEWEST.search(opened.read(_STATE_BYTES).decode(errors="replace"))
    # The folder may have been moved since, also from Windows, so only the last part of a path counts.
    return re.split(r"[/\\]", match[1])[-1] if match else None


def _tensorflow(where: Path) -> Any:
    try:
        with _silent_stderr():
            import tensorflow as tf

            # The first operation looks for devices and prints messages, too.
            tf.constant(0)
    except ImportError as error:
        raise InputError(
            f"{where}: Google's checkpoints need TensorFlow: pip install 'mlm-jax[convert]'"
        ) from error
    return tf


@contextlib.contextmanager
def _silent_stderr() -> Iterator[None]:
    """Hides the errors about missing GPUs that TensorFlow's libraries print on every start, at any log level."""
    sys.stderr.flush()
    kept = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def _open(prefix: Path) -> dict[str, Tensor]:
    tf = _tensorflow(prefix)
    try:
        reader = tf.train.load_checkpoint(str(prefix))
    # TensorFlow raises its own errors, and bare ValueErrors, for files that it cannot open.
    except Exception as error:
        raise InputError(f"{prefix}.*: damaged or truncated: {one_line(error)}") from error

    def read_tensor(name: str) -> np.ndarray:
        try:
            return np.asarray(reader.get_tensor(name))
        except Exception as error:
            raise InputError(f"{prefix}.*: tensor {name}: damaged or truncated: {one_line(error)}") from error

    shapes = reader.get_variable_to_shape_map()
    return {name: Tensor(tuple(shape), partial(read_tensor, name)) for name, shape in shapes.items()}


def write(model: StoredModel, folder: Path) -> int:
    """Writes the folder's files and returns the number of tensors. The config must be `expressible`.

    Raises:
        InputError: a tensor is not float32, the tokenizer is not BERT's, or TensorFlow is not installed.
    """
    for path, leaf in flatten_params(model.params).items():
        if leaf.dtype != np.float32:
            raise InputError(
                f"{NAME} cannot express {path} of {leaf.dtype}: must be float32, which is all that Google's code "
                "reads; --dtype float32 converts it"
            )
    tokenizer_settings = model.tokenizer.bert_settings()
    tf = _tensorflow(folder)
    num_tensors, parts = 0, folder / "parts"
    prefixes: list[str] = []
    for names, arrays in _groups(write_params(ROWS, parameters_of(model), model.params)):
        prefixes.append(str(parts / str(len(prefixes))))
        tf.raw_ops.SaveV2(
            prefix=prefixes[-1],
            tensor_names=names,
            shape_and_slices=[""] * len(names),
            tensors=[tf.convert_to_tensor(array) for array in arrays],
        )
        num_tensors += len(names)
    tf.raw_ops.MergeV2Checkpoints(
        checkpoint_prefixes=prefixes, destination_prefix=str(folder / _PREFIX), delete_old_dirs=True
    )
    model.tokenizer.save_vocabulary(folder / "vocab.txt")
    gelu = next(name for name, kind in _GELUS.items() if kind == model.config.activation)
    settings = settings_from_config(model.config, BERT_SETTINGS) | {"hidden_act": "gelu", _GELU_KEY: gelu}
    write_json(folder / _CONFIG, dict(sorted(settings.items())))
    write_json(folder / "tokenizer_config.json", tokenizer_settings)
    return num_tensors


def _groups(tensors: Iterator[tuple[str, np.ndarray]]) -> Iterator[tuple[list[str], list[np.ndarray]]]:
    """Groups consecutive tensors into about 128 MB, because TensorFlow copies the tensors of each save."""
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


def outputs(folder: Path, batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns the outputs of Google's code; see `mlm_jax.store.reference_outputs` and `run_google_bert`.

    Raises:
        ImportError: TensorFlow, tf_keras or the package bert-tensorflow is not installed.
    """
    from mlm_jax.formats.run_google_bert import run_google_bert

    by_erf = _config(folder / _CONFIG).activation == "gelu"
    return run_google_bert(folder / _CONFIG, _prefix(folder), batch, gelu_by_erf=by_erf)
