"""A model from one format to another: read, compare, write, read back, compare, and only then give it its name.

A certificate beside the model says what was converted from what, with which versions, and how far the outputs differ.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import jax
import ml_dtypes
import numpy as np

from mlm_jax.config.model import WEIGHT_COMPATIBLE_SETTINGS
from mlm_jax.errors import InputError
from mlm_jax.files import new_folder, write_atomically
from mlm_jax.formats.model_folder import StoredModel, check_vocabulary, flatten_params, random_model
from mlm_jax.formats.name_table import Reading
from mlm_jax.store.format_registry import FORMATS, Format, format_of
from mlm_jax.store.hub import find_model
from mlm_jax.store.reference_outputs import ask_library, fixed_batch, largest_difference, our_outputs

FormatName = Literal["mlm_jax", "hugging_face", "google_tf", "keras_hub"]
DType = Literal["float32", "bfloat16"]

CERTIFICATE_FILE = "certificate.json"

# Of the largest output, or of 1 where that is smaller: what float32 leaves open after twenty-four layers, and ten
# times less than what another GELU or another epsilon does.
_TOLERANCE = 5e-5
_DTYPES: Mapping[DType, Any] = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
_PACKAGES = (
    *("mlm-jax", "jax", "numpy", "safetensors", "torch", "transformers", "tensorflow-cpu", "h5py"),
    *("keras", "keras-hub"),
)


@dataclass(frozen=True)
class Request:
    """What a conversion may do beyond carrying every number over."""

    dtype: DType | None = None
    """Store every tensor so; None keeps what the source has."""
    allow_random_head: bool = False
    """Give a model without any head a masked-LM head of random numbers."""
    allow_random_pooler: bool = False
    """Give a model without a pooler one of random numbers where the target must have one."""
    backbone_only: bool = False
    """Carry the encoder alone."""
    change_conventions: bool = False
    """Where the target cannot say a GELU or an epsilon, write the one that it has."""


def convert(
    source: str | Path, target: Path, to: FormatName, request: Request | None = None
) -> dict[str, Any]:
    """Convert the model that `source` names into a new folder, and return its certificate.

    Raises:
        InputError: the source is not usable, the target is there already or cannot hold the model, or the outputs
            of the libraries differ from ours. No target folder is left behind.
    """
    request = request or Request()
    with new_folder(target) as partial:
        certificate = _write(_read(source, FORMATS[to], request), FORMATS[to], partial)
        write_atomically(partial / CERTIFICATE_FILE, (json.dumps(certificate, indent=2) + "\n").encode())
    return certificate


@dataclass
class _Work:
    """A conversion between reading and writing."""

    model: StoredModel
    batch: Mapping[str, np.ndarray]
    outputs: np.ndarray
    """Ours, of the model as the target is to hold it."""
    certificate: dict[str, Any]


def _read(source: str | Path, target: Format, request: Request) -> _Work:
    folder = find_model(source)
    source_format = format_of(folder)
    reading = source_format.read(folder)
    # A run may have left room for more entries than its tokenizer has; nobody else knows such models.
    check_vocabulary(source, reading.model.config, reading.model.tokenizer)
    batch = fixed_batch(reading.model.config)
    outputs = our_outputs(reading.model, batch)
    comparisons = {"source": _compare(source_format, folder, batch, outputs)}
    model, changes = _prepare(reading.model, target, request)
    if changes:
        before, outputs = outputs, our_outputs(model, batch)
        if before.shape == outputs.shape:
            comparisons["change"] = _difference(before, outputs, batch)
    certificate = _describe(source, source_format, reading, model, target, changes)
    return _Work(model, batch, outputs, certificate | {"comparisons": comparisons})


def _write(work: _Work, target: Format, folder: Path) -> dict[str, Any]:
    """Write the model, check what was written, and return the certificate; lets go of the model's arrays."""
    certificate = work.certificate
    certificate["target"]["tensors"] = target.write(work.model, folder)
    expected = _contents(work.model)
    # Read back beside it, the model would be in memory twice.
    work.model.params.clear()
    found = _contents(target.read(folder).model)
    differing = [name for name in sorted({*expected, *found}) if expected.get(name) != found.get(name)]
    if differing:
        raise RuntimeError(f"{target.NAME}: read back otherwise than written: {', '.join(differing[:3])}")
    certificate["comparisons"]["target"] = _compare(target, folder, work.batch, work.outputs)
    files = (path for path in folder.rglob("*") if path.is_file())
    certificate["target"]["files"] = _checksums(folder, files)
    return certificate


def _contents(model: StoredModel) -> dict[str, Any]:
    """What has to be read back as it was written: the tensors to the bit, the conventions, the tokenizer."""
    # Dropout and the spread of random weights mean nothing to a trained model; not every format has them.
    contents: dict[str, Any] = {
        name: value for name, value in asdict(model.config).items() if name not in WEIGHT_COMPATIBLE_SETTINGS
    }
    contents["tokenizer"] = model.tokenizer.fingerprint
    for path, leaf in flatten_params(model.params).items():
        digest = hashlib.sha256(np.ascontiguousarray(leaf).view(np.uint8).data).hexdigest()
        contents[path] = (str(leaf.dtype), leaf.shape, digest)
    return contents


def _prepare(model: StoredModel, target: Format, request: Request) -> tuple[StoredModel, list[str]]:
    """The model as the target is to hold it, and in which words it is another one than the source's."""
    changes = []
    config = target.expressible(model.config)
    params = dict(model.params)
    if target.NEEDS_POOLER and "pooler" not in params["encoder"]:
        if not request.allow_random_pooler:
            raise InputError(
                f"the model has no pooler, and {target.NAME} has one: --allow-random-pooler gives it a random one, "
                "which masked language modelling does not read"
            )
        model = replace(model, config=replace(model.config, pooler=True))
        config = replace(config, pooler=True)
        params["encoder"] = params["encoder"] | {"pooler": _drawn(model, "encoder")["pooler"]}
        changes.append("RANDOM: the pooler is drawn at random, it has learned nothing")
    if request.backbone_only:
        changes += [
            f"left out: {part} (only the backbone was asked for)" for part in params if part != "encoder"
        ]
        params = {"encoder": params["encoder"]}
    elif set(params) == {"encoder"}:
        if not request.allow_random_head:
            raise InputError(
                "the source has no masked-LM head: --allow-random-head gives it a random one, "
                "--backbone-only converts the encoder alone"
            )
        params["head"] = _drawn(model, "head")
        changes.append("RANDOM: the masked-LM head is drawn at random, it has learned nothing")
    for part, reason in target.DROPPED_PARTS.items():
        if params.pop(part, None) is not None:
            changes.append(f"left out: {part} ({reason})")
    if config != model.config:
        differing = [
            f"{name} {value!r} becomes {asdict(config)[name]!r}"
            for name, value in asdict(model.config).items()
            if asdict(config)[name] != value
        ]
        if not request.change_conventions:
            raise InputError(
                f"{target.NAME} cannot say this model's conventions: {', '.join(differing)}; "
                "--change-conventions writes it so, and says how far its outputs move"
            )
        changes += differing
    if request.dtype is not None:
        wanted = np.dtype(_DTYPES[request.dtype])
        before = sorted({str(leaf.dtype) for leaf in jax.tree.leaves(params)} - {str(wanted)})
        if before:
            changes.append(f"{', '.join(before)} stored as {wanted}")
            params = jax.tree.map(lambda leaf: leaf.astype(wanted), params)
    return replace(model, config=config, params=params), changes


def _drawn(model: StoredModel, part: str) -> dict[str, Any]:
    """That part of such a model at random, in the model's own dtype."""
    dtype = model.params["encoder"]["embeddings"]["token"].dtype
    fresh = random_model(model.config, model.tokenizer, seed=0).params[part]
    drawn: dict[str, Any] = jax.tree.map(lambda leaf: leaf.astype(dtype), fresh)
    return drawn


def _compare(
    checked: Format, folder: Path, batch: Mapping[str, np.ndarray], outputs: np.ndarray
) -> dict[str, Any]:
    if checked.NAME == "mlm_jax":
        return {"library": None, "reason": "our own format"}
    reference = ask_library(checked.NAME, folder, batch)
    if reference.outputs is None:
        return {"library": None, "reason": f"{reference.library}: {reference.reason}"}
    found = _difference(outputs, reference.outputs, batch)
    # So written that NaN does not pass.
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
            "name": Path(source).name if Path(source).is_dir() else str(source),
            "format": source_format.NAME,
            "tensors": reading.num_tensors,
            "dropped": dict(reading.dropped),
            "files": _checksums(None, reading.files),
        },
        "target": {
            "format": target_format.NAME,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(model.params)),
        },
        "changes": changes,
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _checksums(root: Path | None, files: Iterable[Path]) -> dict[str, str]:
    checksums = {}
    for path in sorted(files):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        checksums[path.name if root is None else str(path.relative_to(root))] = digest.hexdigest()
    return checksums
