"""KerasHub's preset folders: config.json, model.weights.h5, tokenizer.json, assets/, and task.weights.h5 for the head.

Reads and writes `BertBackbone`, `BertMaskedLM` and `BertTextClassifier` with h5py. KerasHub itself is used only to
compare outputs.
"""

import re
from collections.abc import Collection, Container, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mlm_jax.config import BertConfig
from mlm_jax.errors import InputError
from mlm_jax.families.conventions import BERT_CONVENTIONS, require, require_bert
from mlm_jax.families.names import Endings, Row
from mlm_jax.families.settings import config_from_settings
from mlm_jax.files.json_files import read_json_object
from mlm_jax.formats.h5_files import import_h5py, open_h5
from mlm_jax.formats.keras_hub_json import BACKBONE_SETTINGS, CONFIG_FILE, TASK_FILE, json_files
from mlm_jax.formats.model_folder import (
    ProblemType,
    StoredModel,
    check_num_classes,
    check_vocabulary,
    declared_parameters,
    parameters_of,
    spare_rows,
    unnamed_classes,
    write_json,
)
from mlm_jax.formats.name_table import Reading, Tensor, paths_of, read_params, write_params
from mlm_jax.text.tokenizer import Tokenizer

NAME = "keras_hub"
DROPPED_PARTS: Mapping[str, str] = {
    "next_sentence": "KerasHub has no next-sentence head",
    "token_classifier": "KerasHub has no head for tokens",
    "question_answering": "KerasHub has no head for answers",
}

# In the data type of a layer, or of one of several.
_QUANTIZED = re.compile("QuantizedDTypePolicy|(int8|int4|float8|gptq|awq).*_from_")
_WEIGHTS = "model.weights.h5"
_TASK_WEIGHTS = "task.weights.h5"
_VOCABULARY = Path("assets/tokenizer/vocabulary.txt")

_ENDINGS = Endings(kernel="/vars/0", bias="/vars/1", scale="/vars/0", offset="/vars/1", layout="same")
_LAYER, _LAYERS = "layers/transformer_encoder{layer}", "encoder/layers"
_ATTENTION = f"{_LAYER}/_self_attention_layer"
_BACKBONE_ROWS: tuple[Row, ...] = (
    Row("layers/reversible_embedding/vars/0", "encoder/embeddings/token"),
    Row("layers/position_embedding/vars/0", "encoder/embeddings/position"),
    Row("layers/embedding/vars/0", "encoder/embeddings/segment"),
    *_ENDINGS.norm("layers/layer_normalization", "encoder/embeddings/norm"),
    *_ENDINGS.linear(f"{_ATTENTION}/query_dense", f"{_LAYERS}/attention/query"),
    *_ENDINGS.linear(f"{_ATTENTION}/key_dense", f"{_LAYERS}/attention/key"),
    *_ENDINGS.linear(f"{_ATTENTION}/value_dense", f"{_LAYERS}/attention/value"),
    *_ENDINGS.linear(f"{_ATTENTION}/output_dense", f"{_LAYERS}/attention/output"),
    *_ENDINGS.norm(f"{_LAYER}/_self_attention_layer_norm", f"{_LAYERS}/attention_norm"),
    *_ENDINGS.linear(f"{_LAYER}/_feedforward_intermediate_dense", f"{_LAYERS}/feed_forward/up"),
    *_ENDINGS.linear(f"{_LAYER}/_feedforward_output_dense", f"{_LAYERS}/feed_forward/down"),
    *_ENDINGS.norm(f"{_LAYER}/_feedforward_layer_norm", f"{_LAYERS}/feed_forward_norm"),
    *_ENDINGS.linear("layers/dense", "encoder/pooler"),
)
_HEAD = "layers/masked_lm_head"
_HEAD_ROWS: tuple[Row, ...] = (
    *_ENDINGS.linear(f"{_HEAD}/_intermediate_dense", "head/dense"),
    *_ENDINGS.norm(f"{_HEAD}/_intermediate_layer_norm", "head/norm"),
    Row(f"{_HEAD}/vars/0", "head/bias"),
)
_CLASSIFIER_ROWS: tuple[Row, ...] = _ENDINGS.linear("layers/dense", "classifier")
# Part and rows of the head of each task.
_TASKS: Mapping[str, tuple[str, tuple[Row, ...]]] = {
    "BertMaskedLM": ("head", _HEAD_ROWS),
    "BertTextClassifier": ("classifier", _CLASSIFIER_ROWS),
    # Its name in KerasNLP.
    "BertClassifier": ("classifier", _CLASSIFIER_ROWS),
}
# Problem type of a classifier with each activation.
_ACTIVATIONS: Mapping[str | None, ProblemType | None] = {
    None: None,
    "linear": None,
    "softmax": None,
    "sigmoid": "multi_label_classification",
}
# Display names of the layers in Keras. Its loader does not read them.
_DISPLAYED = {
    "layers/reversible_embedding": "token_embedding",
    "layers/position_embedding": "position_embedding",
    "layers/embedding": "segment_embedding",
    "layers/layer_normalization": "embeddings_layer_norm",
    "layers/dense": "pooled_dense",
    _HEAD: "mlm_head",
}


def _layer_name(layer: int) -> str:
    """Returns the suffix of a layer's group. Keras names groups after classes, and adds _1 to the second of a class."""
    return f"_{layer}" if layer else ""


def recognizes(folder: Path) -> bool:
    """Returns True if the folder is a KerasHub preset, for any model."""
    registered = read_json_object(folder / CONFIG_FILE).get("registered_name")
    return isinstance(registered, str) and registered.startswith(("keras_hub>", "keras_nlp>"))


def expressible(config: BertConfig) -> BertConfig:
    """Returns the nearest expressible config: tanh GELU and 1e-12 in the backbone, exact GELU and 1e-5 in the head.

    Raises:
        InputError: the architecture is not BERT's, or the head is untied.
    """
    return replace(
        require_bert(NAME, config, tied=True),
        embedding_dropout=True,
        pooler_kind="tanh",
        pooling="cls",
        activation="gelu_tanh",
        layer_norm_epsilon=1e-12,
        head_activation="gelu",
        head_layer_norm_epsilon=1e-5,
        attention_dropout_rate=config.dropout_rate,
    )


def poolers(config: BertConfig, parts: Collection[str]) -> tuple[bool, ...]:
    """Returns the possible values of `config.pooler`."""
    return (True,)


def read_architecture(folder: Path) -> StoredModel:
    """Reads everything but the parameters."""
    model = StoredModel(_config(folder / CONFIG_FILE), {}, Tokenizer.load(folder))
    file = folder / TASK_FILE
    task = read_json_object(file)
    if _head_of(task)[0] != "classifier":
        return model
    classes = check_num_classes(file, "num_classes", _settings_in(file, task).get("num_classes"))
    return replace(model, labels=unnamed_classes(classes), problem_type=_problem_type(file, task))


def read(folder: Path) -> Reading:
    """Reads the model of a preset folder, with the head of its task if it is a masked LM or a classifier.

    Raises:
        InputError: the model is not BERT, a file is missing or damaged, a tensor is missing, unknown, of the wrong
            shape or not finite, or the tokenizer has more entries than the model.
    """
    config, tokenizer = _config(folder / CONFIG_FILE), Tokenizer.load(folder)
    check_vocabulary(folder, config, tokenizer)
    files, dropped, labels, problem_type = [folder / _WEIGHTS], {}, None, None
    notes = spare_rows(config, tokenizer)
    with ExitStack() as stack:
        tensors = _open(folder / _WEIGHTS, stack)
        encoder = declared_parameters(config, ["encoder"])
        params = read_params(folder / _WEIGHTS, _BACKBONE_ROWS, encoder, tensors, _layer_name)
        paths = dict.fromkeys(tensors, ()) | paths_of(_BACKBONE_ROWS, encoder, _layer_name)
        if (folder / _TASK_WEIGHTS).is_file():
            files.append(folder / _TASK_WEIGHTS)
            found = _open(folder / _TASK_WEIGHTS, stack)
            of_task: dict[str, tuple[str, ...]] = dict.fromkeys(found, ())
            state = [name for name in found if name.startswith("optimizer/")]
            dropped = dict.fromkeys(state, "state of Keras's optimizer")
            tensors = {name: tensor for name, tensor in found.items() if name not in dropped}
            task = read_json_object(folder / TASK_FILE)
            part, rows, problem = _task(folder / TASK_FILE, task, tensors)
            if problem:
                notes.append(f"left out: {', '.join(tensors)} ({problem})")
            else:
                bias = tensors.get(rows[1].name)
                classes = bias.size if part == "classifier" and bias else 0
                # KerasHub has no names of classes.
                labels = unnamed_classes(classes) or None
                if labels:
                    problem_type = _problem_type(folder / TASK_FILE, task)
                head = declared_parameters(config, [part], classes)
                params |= read_params(folder / _TASK_WEIGHTS, rows, head, tensors)
                of_task |= paths_of(rows, head)
            # Both files have a layers/dense.
            paths |= {
                name if name in dropped else f"{_TASK_WEIGHTS}:{name}": path for name, path in of_task.items()
            }
    model = StoredModel(config, params, tokenizer, labels, problem_type)
    return Reading(model, paths, dropped, notes, files)


def _config(file: Path) -> BertConfig:
    settings = read_json_object(file)
    registered = settings["registered_name"]
    if registered not in ("keras_hub>BertBackbone", "keras_nlp>BertBackbone"):
        raise InputError(f"{file}: {registered} is not supported: must be keras_hub>BertBackbone")
    found = _settings_in(file, settings)
    if _QUANTIZED.search(str(found.get("dtype"))):
        raise InputError(
            f"{file}: its weights are quantized, which is not supported: must be a preset saved before quantize()"
        )
    names = ("vocabulary_size", "num_layers", "num_heads", "hidden_dim", "intermediate_dim")
    missing = [name for name in names if name not in found]
    if missing:
        raise InputError(f"{file}: no {missing[0]}: a BertBackbone's config has one")
    config = config_from_settings(file, found, BACKBONE_SETTINGS)
    return expressible(require(NAME, config, BERT_CONVENTIONS, "BERT", file))


def _task(file: Path, task: Mapping[str, Any], tensors: Container[str]) -> tuple[str, tuple[Row, ...], str]:
    """Returns the part and the rows of a task's head, and why it cannot be read; empty if it can."""
    name, (part, rows) = _task_name(task), _head_of(task)
    activation = _activation(file, task)
    if not part:
        return part, rows, f"of the task {name}"
    if part == "classifier" and activation not in _ACTIVATIONS:
        return part, rows, f"a classifier with the activation {activation!r}"
    if not any(row.name in tensors for row in rows):
        return part, rows, f"not those of {name}"
    return part, rows, ""


def _problem_type(file: Path, task: Mapping[str, Any]) -> ProblemType | None:
    return _ACTIVATIONS.get(_activation(file, task))


def _activation(file: Path, task: Mapping[str, Any]) -> str | None:
    value = _settings_in(file, task).get("activation")
    return value if isinstance(value, str | None) else repr(value)


def _task_name(task: Mapping[str, Any]) -> str:
    return str(task.get("registered_name")).rpartition(">")[2]


def _head_of(task: Mapping[str, Any]) -> tuple[str, tuple[Row, ...]]:
    return _TASKS.get(_task_name(task), ("", ()))


def _settings_in(file: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a Keras object."""
    settings = content.get("config", {})
    if not isinstance(settings, dict):
        raise InputError(f"{file}: config must be an object")
    return settings


def _open(file: Path, stack: ExitStack) -> dict[str, Tensor]:
    """Opens an h5 file, whose tensors are read on demand. Raises InputError if it is missing, or see `open_h5`."""
    if not file.is_file():
        sharded = file.with_suffix(".json").is_file()
        how = (
            "; KerasHub's shards are not supported: save_to_preset writes one file below 10 GB"
            if sharded
            else ""
        )
        raise InputError(f"{file}: no such file{how}")
    return open_h5(file, stack)


def write(model: StoredModel, folder: Path) -> int:
    """Writes a preset's files and returns the number of tensors. The config must be `expressible`.

    Raises:
        InputError: KerasHub does not support a part of the model, or the tokenizer is not BERT's.
    """
    heads = sorted(set(model.params) - {"encoder"})
    if heads not in ([], ["classifier"], ["head"]):
        raise InputError(
            f"{', '.join(heads)}: not supported for KerasHub: must be a masked-LM head or a classifier"
        )
    tokenizer_settings, vocabulary = _tokenizer_settings(model.tokenizer), folder / _VOCABULARY
    num_tensors = _write_h5(folder / _WEIGHTS, _BACKBONE_ROWS, model, "encoder")
    for part, rows in dict(_TASKS.values()).items():
        if part in model.params:
            num_tensors += _write_h5(folder / _TASK_WEIGHTS, rows, model, part)
    vocabulary.parent.mkdir(parents=True)
    model.tokenizer.save_vocabulary(vocabulary)
    for name, content in json_files(model, tokenizer_settings).items():
        write_json(folder / name, content, indent=4)
    return num_tensors


def _write_h5(file: Path, rows: tuple[Row, ...], model: StoredModel, part: str) -> int:
    num_tensors = 0
    with import_h5py(file).File(file, "w") as opened:
        one_part = replace(model, params={part: model.params[part]})
        for name, array in write_params(rows, parameters_of(one_part), one_part.params, _layer_name):
            if array.dtype == ml_dtypes.bfloat16:
                opened.create_dataset(name, data=array.view("V2")).attrs["dtype"] = "bfloat16"
            else:
                opened[name] = array
            num_tensors += 1
        names = _DISPLAYED if part != "classifier" else {"layers/dense": "logits"}
        for group, displayed in names.items():
            if f"{group}/vars" in opened:
                opened[f"{group}/vars"].attrs["name"] = displayed
    return num_tensors


def _tokenizer_settings(tokenizer: Tokenizer) -> dict[str, bool]:
    settings = tokenizer.bert_settings()
    if not settings["tokenize_chinese_chars"]:
        raise InputError(
            "tokenizer: does not split Chinese characters: KerasHub's BertTokenizer always splits them"
        )
    return {"lowercase": settings["do_lower_case"], "strip_accents": settings["strip_accents"]}


def outputs(folder: Path, batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns the outputs of KerasHub; see `mlm_jax.store.reference_outputs`."""
    import keras_hub

    inputs = {name: batch[name] for name in ("token_ids", "padding_mask", "segment_ids")}
    part = ""
    if (folder / _TASK_WEIGHTS).is_file():
        with ExitStack() as stack:
            task, tensors = read_json_object(folder / TASK_FILE), _open(folder / _TASK_WEIGHTS, stack)
            found, _, problem = _task(folder / TASK_FILE, task, tensors)
        part = "" if problem else found
    if not part:
        backbone = keras_hub.models.BertBackbone.from_preset(str(folder), dtype="float32")
        return np.asarray(backbone(inputs)["sequence_output"])
    if part == "classifier":
        # Logits, also of a task that returns probabilities.
        return np.asarray(
            keras_hub.models.BertTextClassifier.from_preset(str(folder), dtype="float32", activation=None)(
                inputs
            )
        )
    masked_lm = keras_hub.models.BertMaskedLM.from_preset(str(folder), dtype="float32")
    rows, length = batch["token_ids"].shape
    inputs["mask_positions"] = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
    return np.asarray(masked_lm(inputs))
