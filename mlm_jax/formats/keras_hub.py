"""KerasHub's preset folders: config.json, model.weights.h5, tokenizer.json, assets/, and the head in task.weights.h5.

`BertBackbone` and `BertMaskedLM`. Read and written with h5py alone; KerasHub itself only answers for comparison.
"""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mlm_jax.config import BertConfig
from mlm_jax.errors import InputError
from mlm_jax.files import write_atomically
from mlm_jax.formats.bert_config import require_bert
from mlm_jax.formats.keras_hub_json import CONFIG_FILE, TASK_FILE, json_files
from mlm_jax.formats.model_folder import StoredModel, check_vocabulary, parameter_shapes, read_json_object
from mlm_jax.formats.name_table import Layout, Reading, Row, Tensor, linear, norm, read_params, write_params
from mlm_jax.text.tokenizer import Tokenizer

NAME = "keras_hub"
DROPPED_PARTS: Mapping[str, str] = {"next_sentence": "KerasHub has no next-sentence head"}
NEEDS_POOLER = True

_WEIGHTS = "model.weights.h5"
_TASK_WEIGHTS = "task.weights.h5"
_VOCABULARY = Path("assets/tokenizer/vocabulary.txt")


def _linear(name: str, path: str, layout: Layout = "same") -> tuple[Row, Row]:
    return linear(name, path, weight="/vars/0", bias="/vars/1", layout=layout)


def _norm(name: str, path: str) -> tuple[Row, Row]:
    return norm(name, path, scale="/vars/0", bias="/vars/1")


# Keras names a layer's group after its class, and numbers the second one of a class with _1: see `_numbered`.
_LAYER, _LAYERS = "layers/transformer_encoder{layer}", "encoder/layers"
_ATTENTION = f"{_LAYER}/_self_attention_layer"
_BACKBONE_ROWS: tuple[Row, ...] = (
    Row("layers/reversible_embedding/vars/0", "encoder/embeddings/token"),
    Row("layers/position_embedding/vars/0", "encoder/embeddings/position"),
    Row("layers/embedding/vars/0", "encoder/embeddings/segment"),
    *_norm("layers/layer_normalization", "encoder/embeddings/norm"),
    *_linear(f"{_ATTENTION}/query_dense", f"{_LAYERS}/attention/query"),
    *_linear(f"{_ATTENTION}/key_dense", f"{_LAYERS}/attention/key"),
    *_linear(f"{_ATTENTION}/value_dense", f"{_LAYERS}/attention/value"),
    *_linear(f"{_ATTENTION}/output_dense", f"{_LAYERS}/attention/output"),
    *_norm(f"{_LAYER}/_self_attention_layer_norm", f"{_LAYERS}/attention_norm"),
    *_linear(f"{_LAYER}/_feedforward_intermediate_dense", f"{_LAYERS}/feed_forward/up"),
    *_linear(f"{_LAYER}/_feedforward_output_dense", f"{_LAYERS}/feed_forward/down"),
    *_norm(f"{_LAYER}/_feedforward_layer_norm", f"{_LAYERS}/feed_forward_norm"),
    *_linear("layers/dense", "encoder/pooler"),
)
_HEAD = "layers/masked_lm_head"
_HEAD_ROWS: tuple[Row, ...] = (
    *_linear(f"{_HEAD}/_intermediate_dense", "head/dense"),
    *_norm(f"{_HEAD}/_intermediate_layer_norm", "head/norm"),
    Row(f"{_HEAD}/vars/0", "head/bias"),
)
# The names that Keras itself gives the layers; its loader does not read them, but people do.
_DISPLAYED = {
    "layers/reversible_embedding": "token_embedding",
    "layers/position_embedding": "position_embedding",
    "layers/embedding": "segment_embedding",
    "layers/layer_normalization": "embeddings_layer_norm",
    "layers/dense": "pooled_dense",
    _HEAD: "mlm_head",
}


def recognises(folder: Path) -> bool:
    """Whether the folder is a preset of KerasHub, of whatever model."""
    registered = read_json_object(folder / CONFIG_FILE).get("registered_name")
    return isinstance(registered, str) and registered.startswith(("keras_hub>", "keras_nlp>"))


def expressible(config: BertConfig) -> BertConfig:
    """The nearest config: tanh GELU and 1e-12 in the backbone, exact GELU and 1e-5 in the head, tied.

    Raises:
        InputError: the architecture is another one than BERT.
    """
    return replace(
        require_bert(NAME, config),
        embedding_dropout=True,
        activation="gelu_tanh",
        layer_norm_epsilon=1e-12,
        head_activation="gelu",
        head_layer_norm_epsilon=1e-5,
        attention_dropout_rate=config.dropout_rate,
    )


def read_architecture(folder: Path) -> tuple[BertConfig, Tokenizer]:
    """The config and the tokenizer, without a weight."""
    return _config(folder / CONFIG_FILE), _tokenizer(folder)


def read(folder: Path) -> Reading:
    """The model of a preset folder, with its masked-LM head where it has a task of that kind.

    Raises:
        InputError: the model is no BERT, a file is missing or damaged, a tensor is missing, extra or of another
            shape, or the tokenizer has another vocabulary size.
    """
    config, tokenizer = read_architecture(folder)
    check_vocabulary(folder, config, tokenizer)
    files, parts, dropped = [folder / _WEIGHTS], ["encoder"], {}
    with ExitStack() as stack:
        tensors = _open(folder / _WEIGHTS, stack)
        params = _read(folder / _WEIGHTS, _BACKBONE_ROWS, config, parts, tensors)
        num_tensors = len(tensors)
        if (folder / _TASK_WEIGHTS).is_file():
            _check_task(folder / TASK_FILE)
            files.append(folder / _TASK_WEIGHTS)
            found = _open(folder / _TASK_WEIGHTS, stack)
            num_tensors += len(found)
            state = [name for name in found if name.startswith("optimizer/")]
            dropped = dict.fromkeys(state, "state of Keras's optimizer")
            head = {name: tensor for name, tensor in found.items() if name not in dropped}
            params |= _read(folder / _TASK_WEIGHTS, _HEAD_ROWS, config, ["head"], head)
    return Reading(StoredModel(config, params, tokenizer), num_tensors, dropped, files)


def _read(
    file: Path, rows: tuple[Row, ...], config: BertConfig, parts: list[str], tensors: Mapping[str, Tensor]
) -> dict[str, Any]:
    return read_params(file, _numbered(rows, config.num_layers), parameter_shapes(config, parts), tensors)


def _numbered(rows: tuple[Row, ...], num_layers: int) -> tuple[Row, ...]:
    """The rows with their layers written out: the first has no number."""
    numbered: list[Row] = []
    for row in rows:
        if "{layer}" not in row.name:
            numbered.append(row)
            continue
        suffixes = ["", *(f"_{layer}" for layer in range(1, num_layers))]
        numbered += [
            row._replace(name=row.name.replace("{layer}", suffix), layer=layer)
            for layer, suffix in enumerate(suffixes)
        ]
    return tuple(numbered)


def _config(file: Path) -> BertConfig:
    settings = read_json_object(file)
    registered = settings["registered_name"]
    if registered not in ("keras_hub>BertBackbone", "keras_nlp>BertBackbone"):
        raise InputError(f"{file}: {registered} is not supported: must be keras_hub>BertBackbone")
    found = settings.get("config", {})
    names = ("vocabulary_size", "num_layers", "num_heads", "hidden_dim", "intermediate_dim")
    missing = [name for name in names if name not in found]
    if missing:
        raise InputError(f"{file}: no {missing[0]}: a BertBackbone's config has one")
    try:
        return expressible(
            BertConfig(
                **{name: found[name] for name in names},
                max_sequence_length=found.get("max_sequence_length", 512),
                num_segments=found.get("num_segments", 2),
                dropout_rate=found.get("dropout", 0.1),
            )
        )
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def _check_task(file: Path) -> None:
    registered = str(read_json_object(file).get("registered_name"))
    if registered.rsplit(">", maxsplit=1)[-1] != "BertMaskedLM":
        raise InputError(f"{file}: the task {registered} is not supported: must be keras_hub>BertMaskedLM")


def _tokenizer(folder: Path) -> Tokenizer:
    settings = read_json_object(folder / "tokenizer.json").get("config", {})
    # The folder of assets has been named after the tokenizer since KerasHub 0.14.
    places = (folder / _VOCABULARY, folder / "assets" / "vocabulary.txt")
    file = next((place for place in places if place.is_file()), places[0])
    lowercase = bool(settings.get("lowercase", False))
    return Tokenizer.load(file, lowercase=lowercase, strip_accents=bool(settings.get("strip_accents", False)))


def _open(file: Path, stack: ExitStack) -> dict[str, Tensor]:
    """Every tensor of an h5 file, read when it is asked for."""
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    h5py = _h5py(file)
    try:
        opened = stack.enter_context(h5py.File(file, "r"))
        tensors: dict[str, Tensor] = {}

        def visit(name: str, found: Any) -> None:
            if isinstance(found, h5py.Dataset):
                tensors[name] = Tensor(found.shape, partial(_array, found))

        opened.visititems(visit)
    except OSError as error:
        raise InputError(f"{file}: damaged or cut off: {' '.join(str(error).split())}") from error
    return tensors


def _array(dataset: Any) -> np.ndarray:
    array = np.asarray(dataset[()])
    # HDF5 has no such type: Keras stores the bits and says so beside them.
    return array.view(ml_dtypes.bfloat16) if dataset.attrs.get("dtype") == "bfloat16" else array


def _h5py(file: Path) -> Any:
    try:
        import h5py
    except ImportError as error:
        raise InputError(f"{file}: Keras's weights need h5py: pip install 'mlm-jax[convert]'") from error
    return h5py


def write(model: StoredModel, folder: Path) -> int:
    """Write a preset's files; returns the number of tensors. The config must be `expressible`.

    Raises:
        InputError: the model has an untied head or a classifier, or its tokenizer is not BERT's.
    """
    _check_parts(model)
    tokenizer_settings, vocabulary = _tokenizer_settings(model.tokenizer), folder / _VOCABULARY
    tensors = _write_h5(folder / _WEIGHTS, _BACKBONE_ROWS, {"encoder": model.params["encoder"]}, model.config)
    if "head" in model.params:
        tensors += _write_h5(folder / _TASK_WEIGHTS, _HEAD_ROWS, {"head": model.params["head"]}, model.config)
    vocabulary.parent.mkdir(parents=True)
    model.tokenizer.save_vocabulary(vocabulary)
    for name, content in json_files(model, tokenizer_settings).items():
        write_atomically(folder / name, (json.dumps(content, indent=4) + "\n").encode())
    return tensors


def _check_parts(model: StoredModel) -> None:
    other = set(model.params) - {"encoder", "head"}
    if other:
        raise InputError(
            f"{', '.join(sorted(other))}: not supported for KerasHub: must be encoder and masked-LM head"
        )
    if not model.config.tie_embeddings:
        raise InputError("the head is untied: KerasHub's is tied to the token embedding")


def _write_h5(file: Path, rows: tuple[Row, ...], params: Mapping[str, Any], config: BertConfig) -> int:
    count = 0
    with _h5py(file).File(file, "w") as opened:
        for name, array in write_params(_numbered(rows, config.num_layers), params):
            if array.dtype == ml_dtypes.bfloat16:
                opened.create_dataset(name, data=array.view("V2")).attrs["dtype"] = "bfloat16"
            else:
                opened[name] = array
            count += 1
        for group, displayed in _DISPLAYED.items():
            if f"{group}/vars" in opened:
                opened[f"{group}/vars"].attrs["name"] = displayed
    return count


def _tokenizer_settings(tokenizer: Tokenizer) -> dict[str, bool]:
    settings = tokenizer.bert_settings()
    if not settings["tokenize_chinese_chars"]:
        raise InputError(
            "tokenizer: keeps Chinese characters together: KerasHub's BertTokenizer always parts them"
        )
    return {"lowercase": settings["do_lower_case"], "strip_accents": settings["strip_accents"]}


def outputs(folder: Path, batch: Mapping[str, np.ndarray]) -> np.ndarray:
    """What KerasHub itself computes: see `mlm_jax.store.reference_outputs`."""
    import keras_hub

    inputs = {name: batch[name] for name in ("token_ids", "padding_mask", "segment_ids")}
    if not (folder / _TASK_WEIGHTS).is_file():
        backbone = keras_hub.models.BertBackbone.from_preset(str(folder), dtype="float32")
        return np.asarray(backbone(inputs)["sequence_output"])
    masked_lm = keras_hub.models.BertMaskedLM.from_preset(str(folder), dtype="float32")
    rows, length = batch["token_ids"].shape
    inputs["mask_positions"] = np.broadcast_to(np.arange(length, dtype=np.int32), (rows, length))
    return np.asarray(masked_lm(inputs))
