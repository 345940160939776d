"""Converts a model: reads it, compares outputs, writes it, reads it back, and compares again before it appears.

A certificate in the new folder records the source, versions, checksums, and differences of outputs.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import jax
import ml_dtypes
import numpy as np
from tqdm import tqdm

from mlm_jax.config.model import HEAD_SETTINGS, POOLER_SETTINGS, WEIGHT_COMPATIBLE_SETTINGS
from mlm_jax.errors import InputError
from mlm_jax.files.atomic import new_folder
from mlm_jax.files.checksums import checksum, checksums, write_checksums
from mlm_jax.formats.model_folder import (
    StoredModel,
    flatten_params,
    random_model,
    spare_rows,
    write_json,
)
from mlm_jax.formats.name_table import Reading
from mlm_jax.store.format_registry import FORMATS, Format, format_of, read_model
from mlm_jax.store.hub import find_model
from mlm_jax.store.loading import CERTIFICATE_FILE, with_training_record
from mlm_jax.store.reference_outputs import ask_library, fixed_batch, largest_difference, our_outputs
from mlm_jax.store.run_folder import run_and_step

FormatName = Literal["mlm_jax", "hugging_face", "google_tf", "keras_hub"]
DType = Literal["float32", "bfloat16"]

# Relative to the largest output, or to 1 if that is smaller. Float32 rounding reaches this after 24 layers; a different
# GELU or epsilon changes the outputs ten times as much.
_TOLERANCE = 5e-5
_DTYPES: Mapping[DType, Any] = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
_PACKAGES = (
    *("mlm-jax", "jax", "numpy", "safetensors", "torch", "transformers", "tensorflow-cpu", "h5py"),
    *("keras", "keras-hub"),
)


@dataclass(frozen=True)
class Request:
    """Allowed changes to the model in a conversion."""

    dtype: DType | None = None
    """Data type of every tensor; None keeps the source's."""
    allow_random_head: bool = False
    """Adds a random masked-LM head to a model without any head."""
    allow_random_pooler: bool = False
    """Adds a random pooler to a model without one if the target needs it."""
    backbone_only: bool = False
    """Converts only the encoder."""
    change_conventions: bool = False
    """Replaces a GELU or epsilon that the target cannot express by the target's own."""


def convert(
    source: str | Path,
    target: Path,
    to: FormatName,
    request: Request | None = None,
    *,
    progress: bool = False,
) -> dict[str, Any]:
    """Converts the model `source` into a new folder and returns its certificate.

    With `progress`, shows the current stage on stderr if it is a terminal.

    Raises:
        InputError: the source is unusable, the target exists or cannot express the model, or a library's outputs differ
            from ours. No target folder remains.
    """
    stages = tqdm(
        total=6, bar_format="{n_fmt}/{total_fmt} {desc}", disable=None if progress else True, leave=False
    )
    with stages, new_folder(target) as partial:
        work = _read(source, FORMATS[to], request or Request(), stages)
        certificate = _write(work, FORMATS[to], partial, stages)
        write_json(partial / CERTIFICATE_FILE, certificate)
        write_checksums(partial)
    return certificate


def _begin(stages: tqdm, name: str) -> None:
    stages.set_description_str(name, refresh=False)
    stages.update()
    stages.refresh()


@dataclass
class _Work:
    """A conversion between reading and writing."""

    model: StoredModel
    """The model to write."""
    batch: Mapping[str, np.ndarray]
    outputs: np.ndarray
    """Our outputs for `model`."""
    certificate: dict[str, Any]


def _read(source: str | Path, target: Format, request: Request, stages: tqdm) -> _Work:
    _begin(stages, "reading")
    folder = find_model(source)
    source_format = format_of(folder)
    reading = read_model(folder)
    _begin(stages, "computing outputs")
    source_model = with_training_record(folder, reading.model)
    batch = fixed_batch(source_model.config)
    outputs = our_outputs(source_model, batch)
    _begin(stages, "comparing the source with its library")
    comparisons = {"source": _compare(source_format, folder, batch, outputs)}
    model, changes = _prepare(source_model, target, request)
    if changes:
        before, outputs = outputs, our_outputs(model, batch)
        if before.shape == outputs.shape:
            comparisons["change"] = _difference(before, outputs, batch)
    certificate = _describe(source, source_format, reading, model, target, changes)
    if model.training is not None:
        certificate["training"] = asdict(model.training)
    return _Work(model, batch, outputs, certificate | {"comparisons": comparisons})


def _write(work: _Work, target: Format, folder: Path, stages: tqdm) -> dict[str, Any]:
    """Writes the model, checks the files, and returns the certificate. Releases the model's arrays."""
    certificate = work.certificate
    _begin(stages, "writing")
    certificate["target"]["tensors"] = target.write(work.model, folder)
    expected = _contents(work.model)
    # Otherwise, the model would be in memory twice after it is read back.
    work.model.params.clear()
    _begin(stages, "reading back")
    read_back = target.read(folder).model
    certificate["changes"] += _lost_names(work.model, read_back, target.NAME)
    found = _contents(read_back)
    differing = [name for name in sorted({*expected, *found}) if expected.get(name) != found.get(name)]
    if differing:
        raise RuntimeError(f"{target.NAME}: read back with differences: {', '.join(differing[:3])}")
    _begin(stages, "comparing the target with its library")
    certificate["comparisons"]["target"] = _compare(target, folder, work.batch, work.outputs)
    certificate["target"]["files"] = checksums(folder)
    return certificate


def _lost_names(model: StoredModel, read_back: StoredModel, target: str) -> list[str]:
    """Returns a description of the names of classes that the target does not keep.

    Raises:
        InputError: the target does not keep the problem type, so its outputs would be read in another way.
    """
    others = ("regression", "multi_label_classification")
    if model.problem_type in others and read_back.problem_type != model.problem_type:
        raise InputError(
            f"{target} cannot express problem_type = {model.problem_type!r}: must be 'single_label_classification'"
        )
    if model.labels != read_back.labels:
        return [f"names of classes left out: {', '.join(model.labels or ())} ({target} has none)"]
    return []


def _contents(model: StoredModel) -> dict[str, Any]:
    """Returns everything that must be the same after reading back: exact tensors, conventions and tokenizer."""
    # Dropout and the initializer do not affect a trained model, and some formats do not store them.
    contents: dict[str, Any] = {
        name: value for name, value in asdict(model.config).items() if name not in WEIGHT_COMPATIBLE_SETTINGS
    }
    contents["tokenizer"] = model.tokenizer.fingerprint
    for path, leaf in flatten_params(model.params).items():
        digest = hashlib.sha256(np.ascontiguousarray(leaf).view(np.uint8).data).hexdigest()
        contents[path] = (str(leaf.dtype), leaf.shape, digest)
    return contents


def _prepare(model: StoredModel, target: Format, request: Request) -> tuple[StoredModel, list[str]]:
    """Returns the model to write, and a description of every change."""
    config = target.expressible(model.config)
    without_effect = _without_effect(model)
    model, changes = _with_parts(model, target, request)
    without_effect |= _without_effect(model)
    config = replace(config, pooler=model.config.pooler)
    if config != model.config:
        ours, theirs = asdict(model.config), asdict(config)
        differing = [
            f"{name} {value!r} becomes {theirs[name]!r}"
            for name, value in ours.items()
            if theirs[name] != value and name not in without_effect
        ]
        if differing and not request.change_conventions:
            raise InputError(
                f"{target.NAME} cannot express this model's conventions: {', '.join(differing)}; "
                "--change-conventions converts it anyway and reports how much its outputs change"
            )
        changes += differing
    params = model.params
    if request.dtype is not None:
        wanted = np.dtype(_DTYPES[request.dtype])
        before = sorted({str(leaf.dtype) for leaf in jax.tree.leaves(params)} - {str(wanted)})
        if before:
            changes.append(f"{', '.join(before)} stored as {wanted}")
            params = jax.tree.map(lambda leaf: leaf.astype(wanted), params)
    return replace(model, config=config, params=params), changes


def _with_parts(model: StoredModel, target: Format, request: Request) -> tuple[StoredModel, list[str]]:
    """Returns the model with the parts to write, and a description of every change."""
    changes = []
    params = dict(model.params)
    if request.backbone_only:
        changes += [f"left out: {part} (--backbone-only)" for part in params if part != "encoder"]
        params = {"encoder": params["encoder"]}
    elif set(params) == {"encoder"}:
        if not request.allow_random_head:
            raise InputError(
                "the source has no masked-LM head: --allow-random-head adds a random one, "
                "--backbone-only converts only the encoder"
            )
        params["head"] = _random_part(model, "head")
        changes.append("RANDOM: the masked-LM head has random weights and must be trained before use")
    for part, reason in target.DROPPED_PARTS.items():
        if params.pop(part, None) is not None:
            changes.append(f"left out: {part} ({reason})")
    if params.keys().isdisjoint({"classifier", "token_classifier"}):
        model = replace(model, labels=None, problem_type=None)
    poolers = target.poolers(model.config, params)
    if model.config.pooler not in poolers:
        model = replace(model, config=replace(model.config, pooler=poolers[0]))
        if poolers[0]:
            if not request.allow_random_pooler:
                raise InputError(
                    f"the model has no pooler, which {target.NAME} needs: --allow-random-pooler adds a random one, "
                    "which masked language modeling does not use"
                )
            fresh = replace(model, config=replace(target.expressible(model.config), pooler=True))
            params["encoder"] = params["encoder"] | {"pooler": _random_part(fresh, "encoder")["pooler"]}
            changes.append("RANDOM: the pooler has random weights and must be trained before use")
        else:
            params["encoder"] = {name: part for name, part in params["encoder"].items() if name != "pooler"}
            changes.append(f"left out: pooler ({target.NAME} has one in a classifier only)")
    return replace(model, params=params), changes


def _without_effect(model: StoredModel) -> set[str]:
    """Returns the settings that do not affect the outputs of a model."""
    config = model.config
    with_head = "head" in model.params or (config.pooler and config.pooler_kind == "head")
    return {*(() if with_head else HEAD_SETTINGS), *(() if config.pooler else POOLER_SETTINGS)}


def _random_part(model: StoredModel, part: str) -> dict[str, Any]:
    """Returns `part` of a random model, in the model's dtype."""
    dtype = model.params["encoder"]["embeddings"]["token"].dtype
    fresh = random_model(model.config, model.tokenizer, seed=0).params[part]
    cast: dict[str, Any] = jax.tree.map(lambda leaf: leaf.astype(dtype), fresh)
    return cast


def _compare(
    checked: Format, folder: Path, batch: Mapping[str, np.ndarray], outputs: np.ndarray
) -> dict[str, Any]:
    if checked.NAME == "mlm_jax":
        return {"library": None, "reason": "our own format"}
    reference = ask_library(checked.NAME, folder, batch)
    if reference.outputs is None:
        return {"library": None, "reason": f"{reference.library}: {reference.reason}"}
    found = _difference(outputs, reference.outputs, batch)
    # Negated, so that NaN fails.
    if not found["max_difference"] <= found["tolerance"]:
        raise InputError(
            f"{folder}: {reference.library} computes outputs that differ from ours by {found['max_difference']:.1e}: "
            f"must be at most {found['tolerance']:.1e}"
        )
    return {"library": reference.library, **found}


def _difference(outputs: np.ndarray, others: np.ndarray, batch: Mapping[str, np.ndarray]) -> dict[str, float]:
    largest = float(np.abs(outputs).max())
    return {
        "max_difference": largest_difference(outputs, others, batch),
        "largest_output": largest,
        "tolerance": _TOLERANCE * max(1.0, largest),
    }


def _describe(
    source: str | Path,
    source_format: Format,
    reading: Reading,
    model: StoredModel,
    target_format: Format,
    changes: list[str],
) -> dict[str, Any]:
    return {
        "source": {
            "name": _name(source),
            "format": source_format.NAME,
            "tensors": len(reading.tensors),
            "dropped": dict(reading.dropped),
            "notes": list(dict.fromkeys([*reading.notes, *spare_rows(model.config, model.tokenizer)])),
            "files": {path.name: checksum(path) for path in sorted(reading.files)},
        },
        "target": {
            "format": target_format.NAME,
            "vocabulary": {
                "rows": model.config.vocabulary_size,
                "entries": model.tokenizer.vocabulary_size,
            },
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(model.params)),
        },
        "changes": changes,
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def _name(source: str | Path) -> str:
    """Returns the name of a model; that of a folder without its parents, RUN/checkpoints/STEP for a checkpoint."""
    if not Path(source).is_dir():
        return str(source)
    folder = Path(source).resolve()
    run, step = run_and_step(folder)
    return folder.name if step is None else folder.relative_to(run.parent).as_posix()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
