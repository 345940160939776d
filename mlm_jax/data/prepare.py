"""Tokenizes text files into shards, in parallel, with bounded memory, and resumable after an interruption.

Rows are cut later, when they are read (`packing.py`).

With `part`, prepares one of several parts, in a subfolder that is itself a preparation; `merge.py` combines them.
`progress.json` records the settings and the finished shards. It is replaced after each shard and removed once the
manifest is written. A shard gets its final name once all its bytes are on disk.
"""

import os
import shutil
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from mlm_jax.corpus.document_formats import DocumentBoundary, ErrorPolicy, Format, ReadOptions
from mlm_jax.corpus.document_hashes import DocumentHashes
from mlm_jax.corpus.documents import STANDARD_INPUT, CorpusCounts, check_any_document, read_files
from mlm_jax.corpus.file_systems import path_names
from mlm_jax.corpus.progress import byte_counter
from mlm_jax.data.division import InputFile, Part, divide, input_files, part_settings
from mlm_jax.data.folders import LocalFolder, is_url
from mlm_jax.data.manifest import (
    MANIFEST_FILE,
    PART_FOLDERS,
    PROGRESS_FILE,
    TOKENIZER_FOLDER,
    ShardRecord,
    check_shard_files,
    read_manifest,
)
from mlm_jax.data.shard_writer import ShardWriter, shard_parts
from mlm_jax.data.shards import DEFAULT_SHARD_TOKENS, open_shards
from mlm_jax.data.totals import Preparation, Totals, json_bytes, manifest_content
from mlm_jax.errors import InputError, RunError, describe_os_error, one_line
from mlm_jax.files.atomic import partial_paths, write_atomically
from mlm_jax.files.folder_lock import LOCK_FILE, FolderLock, own_folder
from mlm_jax.files.json_files import read_json_object
from mlm_jax.text.encode import EncodedBlock, Separator, UnknownTokens, encode_documents
from mlm_jax.text.tokenizer import Tokenizer

EVALUATION_FOLDER = "eval"


@dataclass
class _Progress:
    """Finished shards and the counts of their documents."""

    settings: dict[str, Any]
    shards: list[ShardRecord] = field(default_factory=list)
    documents_read: int = 0
    documents_without_tokens: int = 0
    characters: int = 0
    unknown_tokens: int = 0


def prepare(
    paths: Sequence[str | os.PathLike[str]],
    tokenizer: Tokenizer,
    output: str | Path,
    *,
    text_field: str = "text",
    errors: ErrorPolicy = "strict",
    document_boundary: DocumentBoundary = "line",
    format: Format | None = None,
    eval_share: float | None = None,
    separator: Separator = "sep",
    shard_tokens: int = DEFAULT_SHARD_TOKENS,
    workers: int | None = None,
    part: Part | None = None,
) -> Preparation:
    """Tokenizes the documents of `paths` into the folder `output`.

    text_field, errors, document_boundary and format: see `read_documents`.
    eval_share: this share of the documents is held out, and prepared into the subfolder `eval`. A hash of its text
        decides about a document, so copies of a text are on the same side.
    separator: token that ends each document, [SEP] or none.
    shard_tokens: a shard ends with the document that brings it to this many tokens, or with a stream of `divide`.
    workers: number of threads; by default one per core and at most four, because more would wait for the GIL.
    part: prepares only this part's share of the files, in a subfolder; then call `merge_parts`.

    The shards are byte-identical for any number of workers and parts, and after any number of interruptions. If the
    folder is complete and has the same settings, does nothing.

    Raises InputError for invalid input, leaving nothing behind, and for a folder that another process uses or that has
    other content or settings. Raises RunError if the output cannot be written, keeping the finished shards for the next
    call.
    """
    _check_arguments(output, shard_tokens, workers, eval_share)
    options = ReadOptions(text_field, errors, document_boundary, format)
    files = input_files(path_names(paths), Path(output), options)
    settings = {
        "text_field": text_field,
        "errors": errors,
        "document_boundary": document_boundary,
        "separator": separator,
        "shard_tokens": shard_tokens,
        "vocabulary_size": tokenizer.vocabulary_size,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        # Absent unless given, so that earlier preparations are those of the same settings.
        **({"format": format} if format else {}),
    }
    job = _Job(tokenizer, files, part, workers or _default_workers())
    if eval_share is not None and STANDARD_INPUT in (file.path for file in files):
        raise InputError(
            "-: standard input can be read only once, so nothing can be held out; expected files"
        )
    if eval_share is None:
        return _prepare_side(Path(output), settings, job)
    # Reads the text twice, which takes a fraction of the time of tokenizing it once.
    split = [settings | {"eval_share": eval_share, "held_out": held_out} for held_out in (False, True)]
    train = _prepare_side(Path(output), split[0], job)
    return replace(train, evaluation=_prepare_side(Path(output) / EVALUATION_FOLDER, split[1], job))


@dataclass(frozen=True)
class _Job:
    """Input files and resources of a preparation. Only the part affects the shards."""

    tokenizer: Tokenizer
    files: Sequence[InputFile]
    part: Part | None
    workers: int


def _prepare_side(folder: Path, settings: dict[str, Any], job: _Job) -> Preparation:
    """Prepares all documents, or one side of a split, into `folder`."""
    streams = divide(job.files, settings["shard_tokens"])
    if job.part:
        _check_siblings(folder, job.part)
        folder /= job.part.folder
        streams = job.part.share(streams, settings["shard_tokens"])
    inputs = [file.identity for stream in streams for file in stream]
    settings = {"inputs": inputs, **settings, **(part_settings(job.part, job.files) if job.part else {})}
    _check_standard_input(folder, job)
    # A complete folder may be read-only.
    if _is_finished(folder) and not (folder / LOCK_FILE).exists():
        return Preparation(_check_finished(folder, settings), 0.0, 0)
    with own_folder(folder) as lock:
        # Another process may have finished it since.
        if _is_finished(folder):
            return Preparation(_check_finished(folder, settings), 0.0, 0)
        return _prepare(folder, lock, settings, streams, job)


def _check_standard_input(folder: Path, job: _Job) -> None:
    """Raises InputError for standard input if this cannot be the only time that it is read."""
    if STANDARD_INPUT not in (file.path for file in job.files):
        return
    if job.part:
        raise InputError("-: standard input cannot be divided into parts; expected files")
    if any((folder / name).exists() for name in (MANIFEST_FILE, PROGRESS_FILE)):
        raise InputError(
            f"{folder}: contains a preparation, which cannot be compared with standard input or resumed from it; "
            "choose another folder or remove this one"
        )


def _is_finished(folder: Path) -> bool:
    return (folder / MANIFEST_FILE).exists()


def _prepare(
    folder: Path,
    lock: FolderLock,
    settings: dict[str, Any],
    streams: Iterable[Sequence[InputFile]],
    job: _Job,
) -> Preparation:
    counts, unknown = CorpusCounts(), UnknownTokens(job.tokenizer)
    hashes = DocumentHashes(settings.get("eval_share"), held_out=settings.get("held_out", False))
    started = time.perf_counter()
    progress = _start_or_resume(folder, settings)
    try:
        documents = (hashes.kept(_documents(stream, settings, counts)) for stream in streams)
        text_bytes = _write_shards(folder, progress, documents, job, unknown)
        if not job.part:
            check_any_document([file.path for file in job.files], counts)
            other_side = [hashes.left_out] if "eval_share" in settings else []
            num_shards = min([len(progress.shards), *other_side])
            check_any_token(num_shards, counts.documents, settings.get("eval_share"))
        lock.confirm()
        totals = _finish(folder, progress, job.tokenizer, counts)
    except InputError:
        _remove(folder)
        raise
    except OSError as error:
        lock.confirm()
        if not progress.shards:
            _remove(folder)
        raise RunError(
            f"{folder}: preparation stopped: {describe_os_error(error)}; rerun it to resume"
        ) from error
    warning = unknown.warning(totals.unknown_share)
    seconds, warnings = time.perf_counter() - started, tuple(filter(None, [warning]))
    return Preparation(totals, seconds, text_bytes, warnings, hashes.duplicates)


class NothingHeldOutError(InputError):
    """A split leaves one side without a document."""


def check_any_token(num_shards: int, num_documents: int, eval_share: float | None = None) -> None:
    """Raises InputError if `num_documents` documents yielded no shard, on one side of a split if there is one."""
    if not num_shards and eval_share is not None:
        raise NothingHeldOutError(
            f"eval_share {eval_share}: one side has none of the {num_documents} documents; expected a share that "
            "leaves documents on both sides"
        )
    if not num_shards:
        raise InputError(f"none of the {num_documents} documents has a token; expected text")


def _check_arguments(
    output: str | Path, shard_tokens: int, workers: int | None, eval_share: float | None
) -> None:
    if eval_share is not None and not 0 < eval_share < 1:
        raise InputError(f"eval_share {eval_share}: expected a number between 0 and 1, such as 0.01")
    if shard_tokens < 1:
        raise InputError(f"shard_tokens {shard_tokens}: expected at least 1")
    if workers is not None and workers < 1:
        raise InputError(f"workers {workers}: expected at least 1")
    if is_url(output):
        raise InputError(f"{output}: expected a local folder; prepare into one, then copy the whole folder")


def _check_finished(folder: Path, settings: dict[str, Any]) -> Totals:
    """Returns the totals of a complete preparation. Raises InputError if it was made with other settings."""
    manifest = read_manifest(LocalFolder(folder))
    _check_settings(folder, manifest["settings"], settings)
    open_shards(folder)
    (folder / PROGRESS_FILE).unlink(missing_ok=True)
    return Totals.of_manifest(manifest)


def _documents(stream: Sequence[InputFile], settings: dict[str, Any], counts: CorpusCounts) -> Iterator[str]:
    names = ("text_field", "errors", "document_boundary", "format")
    options = ReadOptions(**{name: settings[name] for name in names if name in settings})
    return read_files([file.path for file in stream], options, counts)


def _check_siblings(folder: Path, part: Part) -> None:
    """Raises InputError if `folder` contains a preparation without parts or with another number of parts."""
    if not (folder / part.folder).exists():
        for name in (MANIFEST_FILE, PROGRESS_FILE):
            if (folder / name).exists():
                raise InputError(
                    f"{folder}: contains a preparation without parts ({name}); choose another folder"
                )
    ending = part.folder.removeprefix(f"part-{part.index:05d}")
    other = next((path.name for path in folder.glob(PART_FOLDERS) if not path.name.endswith(ending)), None)
    if other:
        raise InputError(
            f"{folder}: contains {other}, not one of {part.num_parts} parts; choose another folder or the same number"
        )


def _default_workers() -> int:
    return min(os.cpu_count() or 1, 4)


def _start_or_resume(folder: Path, settings: dict[str, Any]) -> _Progress:
    file = folder / PROGRESS_FILE
    try:
        # Left by a process that was killed.
        for partial in [*partial_paths(folder), *partial_paths(folder / TOKENIZER_FOLDER)]:
            partial.unlink(missing_ok=True)
        if file.exists():
            progress = _read_progress(file)
            _check_settings(folder, progress.settings, settings)
            check_shard_files(LocalFolder(folder), progress.shards, settings["vocabulary_size"])
            return progress
        if any(path.name != LOCK_FILE for path in folder.iterdir()):
            raise InputError(f"{folder}: not empty, and not a preparation to resume; choose another folder")
        progress = _Progress(settings)
        _save_progress(folder, progress)
    except OSError as error:
        raise RunError(f"{folder}: cannot be written: {describe_os_error(error)}") from error
    return progress


def _write_shards(
    folder: Path,
    progress: _Progress,
    streams: Iterable[Iterator[str]],
    job: _Job,
    unknown: UnknownTokens,
) -> int:
    """Writes the missing shards and returns the size of their text in bytes of UTF-8."""
    text_bytes = 0
    separator, shard_tokens = progress.settings["separator"], progress.settings["shard_tokens"]

    def counted(documents: Iterator[str]) -> Iterator[str]:
        nonlocal text_bytes
        for document in documents:
            size = len(document) if document.isascii() else len(document.encode())
            text_bytes += size
            bar.update(size)
            yield document

    def parts() -> Generator[tuple[EncodedBlock, bool]]:
        nonlocal text_bytes
        num_done = progress.documents_read
        for documents in map(counted, streams):
            if num_done:
                num_done -= sum(1 for _ in islice(documents, num_done))
                text_bytes = 0
            with closing(
                encode_documents(documents, job.tokenizer, separator, workers=job.workers)
            ) as blocks:
                yield from shard_parts(unknown.watch(blocks), shard_tokens)

    writer: ShardWriter | None = None
    with byte_counter("prepare") as bar, closing(parts()) as encoded:
        try:
            for part, closes_shard in encoded:
                writer = writer or ShardWriter(folder, len(progress.shards))
                writer.write(part)
                _advance(progress, part, job.tokenizer.unknown_token_id)
                if closes_shard and writer.num_tokens:
                    progress.shards.append(writer.close())
                    _save_progress(folder, progress)
                    writer = None
                bar.set_postfix(documents=progress.documents_read, refresh=False)
        finally:
            if writer:
                writer.discard()
    return text_bytes


def _advance(progress: _Progress, part: EncodedBlock, unknown_token_id: int) -> None:
    kept = part.document_lengths > 0
    progress.documents_read += len(kept)
    progress.documents_without_tokens += len(kept) - int(kept.sum())
    progress.characters += int(part.document_characters[kept].sum())
    progress.unknown_tokens += int(np.count_nonzero(part.tokens == unknown_token_id))


def _finish(folder: Path, progress: _Progress, tokenizer: Tokenizer, counts: CorpusCounts) -> Totals:
    num_documents = sum(shard.documents for shard in progress.shards)
    totals = Totals(
        documents=num_documents,
        tokens=sum(shard.tokens for shard in progress.shards),
        characters=progress.characters,
        skipped=counts.skipped + progress.documents_without_tokens,
        replaced=counts.replaced,
        unknown_tokens=progress.unknown_tokens,
        separators=num_documents if progress.settings["separator"] == "sep" else 0,
        empty_files=counts.empty_files,
    )
    tokenizer.save(folder / TOKENIZER_FOLDER)
    write_atomically(folder / MANIFEST_FILE, manifest_content(progress.settings, totals, progress.shards))
    (folder / PROGRESS_FILE).unlink(missing_ok=True)
    return totals


def _check_settings(folder: Path, made_with: dict[str, Any], settings: dict[str, Any]) -> None:
    names = {**settings, **made_with}
    name = next((name for name in names if made_with.get(name) != settings.get(name)), None)
    if name is None:
        return
    then, now = made_with.get(name), settings.get(name)
    if isinstance(then, list) and isinstance(now, list):
        pairs = zip_longest(then, now, fillvalue="nothing")
        then, now = next(pair for pair in pairs if pair[0] != pair[1])
    raise InputError(
        f"{folder}: made with other settings: {name} was {then!r}, is {now!r}; "
        "choose another folder or remove this one"
    )


def _read_progress(file: Path) -> _Progress:
    try:
        content = read_json_object(file)
        return _Progress(**{**content, "shards": [ShardRecord(**shard) for shard in content["shards"]]})
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{file}: damaged ({one_line(error)}); remove the folder and prepare it again"
        ) from error


def _save_progress(folder: Path, progress: _Progress) -> None:
    write_atomically(folder / PROGRESS_FILE, json_bytes(asdict(progress)))


def _remove(folder: Path) -> None:
    for pattern in (
        "tokens-*.bin*",
        "documents-*.bin*",
        "words-*.bin*",
        "checksums-*.bin*",
        f"{PROGRESS_FILE}*",
    ):
        for file in folder.glob(pattern):
            file.unlink(missing_ok=True)
    shutil.rmtree(folder / TOKENIZER_FOLDER, ignore_errors=True)
