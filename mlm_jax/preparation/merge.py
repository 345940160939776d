"""Merges the parts of a preparation into one manifest. No shard is moved, rewritten or read."""

from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from mlm_jax.corpus.progress import track
from mlm_jax.errors import InputError, RunError
from mlm_jax.files.atomic import write_atomically
from mlm_jax.files.folder_lock import own_folder
from mlm_jax.preparation.division import Part, corpus_identity
from mlm_jax.preparation.prepare import EVALUATION_FOLDER, check_any_token
from mlm_jax.shards.folders import LocalFolder
from mlm_jax.shards.manifest import (
    MANIFEST_FILE,
    PART_FOLDERS,
    PROGRESS_FILE,
    TOKENIZER_FOLDER,
    read_manifest,
    shard_records,
)
from mlm_jax.shards.token_store import open_shards
from mlm_jax.shards.totals import Totals, manifest_content


def merge_parts(folder: str | Path) -> Totals:
    """Writes the manifest of a preparation whose parts were written into `folder` with `prepare(…, part=…)`.

    Documents, their order, shards and fingerprint are the same as with one `prepare` without parts. Merging again
    changes nothing.

    Raises:
        InputError: there are no parts, or some are missing or unfinished; a part differs from the first one in
            settings, tokenizer or input files; a file of a part is missing or truncated; or the folder contains the
            manifest of other data.
        RunError: the disk is full.
    """
    folder = Path(folder)
    # Otherwise, the lock would create it.
    first, *_ = _finished_parts(folder)
    # The parts of the documents that were held out; first, so that a manifest here means that both are merged.
    if read_manifest(LocalFolder(folder / first.folder))["settings"].get("held_out") is False:
        merge_parts(folder / EVALUATION_FOLDER)
    with own_folder(folder):
        return _merge(folder)


def _merge(folder: Path) -> Totals:
    parts = _finished_parts(folder)
    manifests = [read_manifest(LocalFolder(folder / part.folder)) for part in parts]
    for part, manifest in zip(track(parts, "merge", "parts"), manifests, strict=True):
        _check_same(folder / part.folder, _common(manifest), _common(manifests[0]))
        # Checks the sizes of its files and the fingerprint of its manifest.
        open_shards(folder / part.folder)
    settings = _common(manifests[0])
    corpus = settings.pop("corpus")
    inputs = [file for manifest in manifests for file in manifest["settings"]["inputs"]]
    if corpus_identity(inputs) != corpus:
        raise InputError(f"{folder}: the parts do not cover the {corpus['files']} input files; prepare again")
    totals = Totals(
        **{
            field.name: sum(part["totals"].get(field.name, 0) for part in manifests)
            for field in fields(Totals)
        }
    )
    shards = [
        replace(record, folder=part.folder)
        for part, manifest in zip(parts, manifests, strict=True)
        for record in shard_records(manifest)
    ]
    check_any_token(len(shards), totals.documents + totals.skipped, settings.get("eval_share"))
    _finish(
        folder, folder / parts[0].folder, manifest_content({"inputs": inputs, **settings}, totals, shards)
    )
    return totals


def _finished_parts(folder: Path) -> list[Part]:
    """Returns all parts. Raises InputError if some are missing or unfinished."""
    names = sorted(path.name for path in folder.glob(PART_FOLDERS))
    numbers = sorted({name.rpartition("-")[2] for name in names})
    if not numbers:
        raise InputError(f"{folder}: no parts here; run mlm-jax prepare --part I --num-parts N for each")
    if len(numbers) > 1 or not numbers[0].isdecimal():
        raise InputError(
            f"{folder}: contains parts of {' and of '.join(numbers)}; keep those of one preparation only"
        )
    parts = [Part(index, int(numbers[0])) for index in range(int(numbers[0]))]
    missing = [part for part in parts if not (folder / part.folder / MANIFEST_FILE).is_file()]
    if missing:
        unfinished = [part for part in missing if (folder / part.folder / PROGRESS_FILE).is_file()]
        started = f" ({_ranges(unfinished)} not finished)" if unfinished else ""
        raise InputError(
            f"{folder}: parts {_ranges(missing)} of {len(parts)} are missing{started}; run mlm-jax prepare for them"
        )
    return parts


def _common(manifest: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings that all parts must share."""
    return {name: value for name, value in manifest["settings"].items() if name not in ("inputs", "part")}


def _check_same(folder: Path, settings: dict[str, Any], others: dict[str, Any]) -> None:
    for name in others.keys() | settings.keys():
        if settings.get(name) != others.get(name):
            raise InputError(
                f"{folder}: {name} is {settings.get(name)!r}, but {others.get(name)!r} in the first part; "
                "re-prepare the parts that do not match"
            )


def _finish(folder: Path, first_part: Path, manifest: bytes) -> None:
    file = folder / MANIFEST_FILE
    if file.exists():
        if file.read_bytes() == manifest:
            return
        raise InputError(f"{file}: exists and does not belong to these parts; remove it to merge them")
    try:
        (folder / TOKENIZER_FOLDER).mkdir(exist_ok=True)
        for source in (first_part / TOKENIZER_FOLDER).iterdir():
            write_atomically(folder / TOKENIZER_FOLDER / source.name, source.read_bytes())
        write_atomically(file, manifest)
    except OSError as error:
        raise RunError(f"{folder}: cannot be written: {error.strerror}") from error


def _ranges(parts: Sequence[Part]) -> str:
    """Returns the indices in the notation of Slurm's --array: 3,7-9."""
    stretches: Iterable[list[int]] = (
        [part.index for _, part in stretch]
        for _, stretch in groupby(enumerate(parts), lambda pair: pair[1].index - pair[0])
    )
    return ",".join(str(s[0]) if len(s) == 1 else f"{s[0]}-{s[-1]}" for s in stretches)
