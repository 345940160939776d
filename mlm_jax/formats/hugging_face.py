"""Hugging Face's folders: config.json, model.safetensors or other weights, vocab.txt or tokenizer.json.

`mlm_jax.families` has the families and classes that are supported.
"""

from collections.abc import Collection, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mlm_jax.config.model import BertConfig
from mlm_jax.errors import InputError
from mlm_jax.families.family import TOKEN_HEADS, Family
from mlm_jax.families.names import Row
from mlm_jax.families.registry import config_of, family_of, family_of_settings
from mlm_jax.files.json_files import read_json_object
from mlm_jax.formats.hugging_face_weights import are_of_torch, has_weights, open_weights
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
from mlm_jax.formats.name_table import Reading, Tensor, parts_in, paths_of, read_params, write_params
from mlm_jax.formats.safetensors_files import WEIGHTS_FILE
from mlm_jax.formats.sentence_transformers import sentence_vectors_note
from mlm_jax.formats.tensor_checks import some
from mlm_jax.formats.tensor_names import NamedTensors, name_tensors
from mlm_jax.text.tokenizer import Tokenizer

NAME = "hugging_face"
DROPPED_PARTS: Mapping[str, str] = {}

_CLASSIFIER_DROPOUT = ("classifier_dropout", "classifier_dropout_prob", "seq_classif_dropout")
ADAPTER_FILE = "adapter_config.json"
_CONFIG, _GOOGLE_CONFIG = "config.json", "bert_config.json"


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
    """Returns the nearest config that the family of this one can express.

    Raises:
        InputError: no family has this architecture.
    """
    return family_of(config).expressible(NAME, config)


def poolers(config: BertConfig, parts: Collection[str]) -> tuple[bool, ...]:
    """Returns the possible values of `config.pooler`; some families have a pooler in a classifier only."""
    has_pooler = bool(family_of(config).tensor("encoder/pooler/kernel", [*parts]))
    return (True, False) if has_pooler else (False,)


def read_architecture(folder: Path) -> StoredModel:
    """Reads everything but the parameters; with a pooler, or classes, if the class of the model has them."""
    file = _config_file(folder)
    settings = read_json_object(file)
    architectures = _architectures(file, settings)
    family = family_of_settings(file, settings, architectures)
    config = config_of(NAME, file, settings, family)
    is_masked_lm = f"{family.class_prefix}ForMaskedLM" in architectures
    has_pooler = family.tensor("encoder/pooler/kernel", [*_parts(family, architectures)]) and not is_masked_lm
    config = replace(config, pooler=bool(has_pooler))
    model = StoredModel(config, {}, Tokenizer.load(folder))
    if family.classifier_class not in architectures:
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
        InputError: the family is not supported, a file is missing or damaged, a tensor is missing, unknown, of the
            wrong shape or not finite, or the tokenizer has more entries than the model.
    """
    file = _config_file(folder)
    settings = read_json_object(file)
    architectures = _architectures(file, settings)
    family = family_of_settings(file, settings, architectures)
    config = config_of(NAME, file, settings, family)
    with ExitStack() as stack:
        tensors, files = open_weights(folder, stack)
        named, rows = _named(folder, family, config, architectures, tensors)
        table = {row.path: row.name for row in rows}
        config = replace(config, pooler=table.get("encoder/pooler/kernel") in named.tensors)
        tokenizer = Tokenizer.load(folder)
        check_vocabulary(folder, config, tokenizer)
        check_padding(file, config, tokenizer)
        labels, problem_type, notes = None, None, spare_rows(config, tokenizer)
        parts = parts_in(rows, named.tensors)
        check_pooler(folder, config, parts)
        if "token_classifier" in parts:
            labels, label_notes = _labels(file, settings, named.tensors[table["token_classifier/bias"]].size)
            notes += label_notes
        if "classifier" in parts:
            bias = table["classifier/bias"]
            if not architectures:
                notes.append(
                    f"{file.name} names no architecture: classifier.* is read as that of {family.classifier_class}"
                )
            labels, label_notes = _labels(file, settings, named.tensors[bias].size)
            problem_type = read_problem_type(file, settings)
            notes += label_notes
            for key in _CLASSIFIER_DROPOUT:
                if settings.get(key) not in (None, config.dropout_rate):
                    notes.append(
                        f"left out: {key} {settings[key]!r} (the dropout rate of the encoder, {config.dropout_rate}, "
                        "is used in the classifier, too)"
                    )
        if (folder / ADAPTER_FILE).is_file():
            notes.append(
                f"left out: the adapter of PEFT ({ADAPTER_FILE}), which is not merged into the weights"
            )
        if note := sentence_vectors_note(folder):
            notes.append(note)
        if named.left_out:
            names = ", ".join(sorted(named.left_out))
            notes.append(f"left out: {names} ({', '.join(architectures) or 'an unknown class'})")
        parameters = declared_parameters(config, parts, len(labels or ()))
        params = read_params(folder, rows, parameters, named.tensors)
        paths: dict[str, tuple[str, ...]] = dict.fromkeys(tensors, ())
        paths |= {named.names.get(name, name): path for name, path in paths_of(rows, parameters).items()}
    model = StoredModel(config, params, tokenizer, labels, problem_type)
    return Reading(model, paths, named.dropped, notes, files)


def _config_file(folder: Path) -> Path:
    own = folder / _CONFIG
    return own if own.is_file() else folder / _GOOGLE_CONFIG


def _architectures(file: Path, settings: Mapping[str, Any]) -> list[str]:
    names = settings.get("architectures") or []
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise InputError(f"{file}: architectures = {names!r}: must be a list of names")
    return names


def _named(
    folder: Path,
    family: Family,
    config: BertConfig,
    architectures: list[str],
    tensors: Mapping[str, Tensor],
) -> tuple[NamedTensors, tuple[Row, ...]]:
    """Returns the family's tensors in a file, and the name table of its parts."""
    parts = _parts(family, architectures)
    if not architectures:
        # A classifier of tokens may have the same names, but no pooler.
        pooler = family.tensor("encoder/pooler/kernel", ["classifier"]).removeprefix(family.prefix)
        if any(name.endswith(pooler) for name in tensors):
            parts |= {"classifier"}
    is_known = not architectures or bool(parts)
    heads = family.heads if is_known or not family.heads_are_shared else ()
    heads += tuple(f"{module}." for part, module in TOKEN_HEADS.items() if part in parts)
    has_classifier = "classifier" in parts
    named = name_tensors(
        folder,
        family,
        tensors,
        tied=config.tie_embeddings,
        heads=(*heads, *family.classifier) if has_classifier else heads,
        unused=family.unused(config, parts),
    )
    rows = family.table([*parts])
    if has_classifier and "classifier" not in parts_in(rows, named.tensors):
        rows = family.table([*(parts - {"classifier"})])
    return named, rows


def _parts(family: Family, architectures: list[str]) -> set[str]:
    """Returns the parts of a model of these classes; those of other families have none."""
    return {part for name in architectures for part in family.named_classes.get(name, ())}


def _labels(file: Path, settings: Mapping[str, Any], classes: int) -> tuple[tuple[str, ...], list[str]]:
    """Returns the names of the classes, and a note if the config does not name as many as there are."""
    named = settings.get("id2label")
    if named is None:
        return unnamed_classes(classes), []
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
        raise InputError(f"{file}: id2label = {named!r:.80}: must map each class to its name, a string")
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
    classes = family_of(model.config).named_classes
    # Not a class of its own: all of the family have it, or make a new one.
    found = set(model.params) - {"contact_head"}
    for name, parts in classes.items():
        if set(parts) == found:
            return name
    raise InputError(
        f"no class of transformers has exactly the parts {', '.join(sorted(model.params))}: must be those of "
        f"{', '.join(classes)}; --backbone-only converts only the encoder"
    )


def write(model: StoredModel, folder: Path) -> int:
    """Writes the folder's files and returns the number of tensors. The config must be `expressible`."""
    family, class_name = family_of(model.config), class_of(model)
    check_padding(folder, model.config, model.tokenizer)
    prefix = family.prefix if {*model.params} <= {"encoder", "contact_head"} else ""
    tensors = {
        name.removeprefix(prefix): array
        for name, array in write_params(family.table([*model.params]), parameters_of(model), model.params)
    }
    if family.buffers_are_written and model.config.positions == "rotary":
        tensors |= _constants(family, model.config, prefix)
    if family.decoder_bias and "head" in model.params and not model.config.tie_embeddings:
        # transformers 5 adds this bias, transformers 4 the other.
        tensors[family.decoder_bias] = tensors[family.bias]
    write_tensors(folder / WEIGHTS_FILE, tensors, "pt")
    write_json(folder / _CONFIG, dict(sorted(_settings(model, family, class_name).items())))
    model.tokenizer.save(folder, model_max_length=model.config.max_sequence_length)
    return len(tensors)


def _constants(family: Family, config: BertConfig, prefix: str) -> dict[str, np.ndarray]:
    """Returns the buffers of every layer, which transformers would otherwise miss."""
    return {
        pattern.format(layer=layer).removeprefix(prefix): values_of(config.head_dim // 2)
        for pattern, values_of in family.constants.items()
        if "{layer}" in pattern
        for layer in range(config.num_layers)
    }


def check_padding(where: Path, config: BertConfig, tokenizer: Tokenizer) -> None:
    """Raises InputError if positions that count from the padding id would begin elsewhere in transformers."""
    if config.position_offset and tokenizer.pad_token_id != config.position_offset - 1:
        raise InputError(
            f"{where}: positions count from {config.position_offset}, the padding id + 1, but the tokenizer pads with "
            f"{tokenizer.pad_token_id}: must be {config.position_offset - 1}"
        )


def _settings(model: StoredModel, family: Family, class_name: str) -> dict[str, Any]:
    config, dtype = model.config, str(model.params["encoder"]["embeddings"]["token"].dtype)
    settings = family.settings_of(config) | {
        "architectures": [class_name],
        "model_type": family.model_type,
        "pad_token_id": model.tokenizer.pad_token_id,
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
    settings = read_json_object(file)
    architectures = _architectures(file, settings)
    family = family_of_settings(file, settings, architectures)
    read_config = family.read(file, settings)
    with ExitStack() as stack:
        tensors, files = open_weights(folder, stack)
        named, rows = _named(folder, family, read_config, architectures, tensors)
        parts = parts_in(rows, named.tensors)
        classes = family.named_classes
        name = next(name for name, needed in classes.items() if set(needed) <= set(parts))
        config = getattr(transformers, f"{family.class_prefix}Config").from_json_file(file)
        for row in rows:
            if row.path in ("classifier/bias", "token_classifier/bias") and row.name in named.tensors:
                config.num_labels = named.tensors[row.name].size
        # transformers does not remove the prefixes of wrappers, and since version 5 only reads files of torch.
        is_readable = are_of_torch(files) and not named.wrapper
        given = {} if is_readable else named.tensors
        state = {key: torch.from_numpy(tensor.read().astype(np.float32)) for key, tensor in given.items()}
    model, report = getattr(transformers, name).from_pretrained(
        folder if is_readable else None,
        config=config,
        state_dict=None if is_readable else state,
        attn_implementation="eager",
        dtype=torch.float32,
        output_loading_info=True,
    )
    missing = [key for key in report["missing_keys"] if ".pooler." not in f".{key}"]
    if missing:
        raise ValueError(f"transformers finds no {some(missing)}")
    # Stated, because some classes derive them from the ids that are not padding, and the batch has every id.
    positions = read_config.position_offset + torch.arange(batch["token_ids"].shape[1])[None]
    segments = {"token_type_ids": torch.from_numpy(batch["segment_ids"]).long()}
    with torch.no_grad():
        computed = model.eval()(
            input_ids=torch.from_numpy(batch["token_ids"]).long(),
            attention_mask=torch.from_numpy(batch["padding_mask"]).long(),
            position_ids=positions,
            **(segments if read_config.num_segments else {}),
        )
    if "question_answering" in classes[name]:
        return torch.stack([computed.start_logits, computed.end_logits], dim=-1).numpy()
    first = "prediction_logits" if name.endswith("ForPreTraining") else "logits"
    encoder_alone = classes[name] == ("encoder",)
    return (computed.last_hidden_state if encoder_alone else computed[first]).numpy()
