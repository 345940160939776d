"""Tokenizes text files into shards, in parallel, with bounded memory, and resumable after an interruption.

Rows are cut later, when they are read (`packing.py`).

With `part`, prepares one of several parts, in a subfolder that is itself a preparation; `merge.py` combines them.
`progress.json` records the settings and the finished shards. It is replaced after each shard and removed once the
manifest is written. A shard gets its final name once all its bytes are on disk.
"""

import json
import os
import shutil
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from mlm_jax.data.division import InputFile, Part, divide, input_files, part_settings
from mlm_jax.data.folders import LocalFolder, is_url
from mlm_jax.data.manifest import (
    FORMAT_VERSION,
    MANIFEST_FILE,
    PART_FOLDERS,
    PROGRESS_FILE,
    TOKENIZER_FOLDER,
    ShardRecord,
    check_shard_files,
    content_fingerprint,
    read_manifest,
)
from mlm_jax.data.shard_writer import ShardWriter, shard_parts
from mlm_jax.data.shards import DEFAULT_SHARD_TOKENS, open_shards
from mlm_jax.errors import InputError, RunError
from mlm_jax.files.atomic import partial_paths, write_atomically
from mlm_jax.files.folder_lock import LOCK_FILE, FolderLock, own_folder
from mlm_jax.text.corpus import (
    CorpusCounts,
    DocumentBoundary,
    ErrorPolicy,
    check_any_document,
    read_files,
)
from mlm_jax.text.encode import EncodedBlock, Separator, encode_documents, token_dtype
from mlm_jax.text.progress import byte_counter
from mlm_jax.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Totals:
    """Total counts of a preparation.

    characters: in the documents kept. skipped: documents without text or without tokens. replaced: documents
    in which invalid text was replaced.
    """

    documents: int
    tokens: int
    characters: int
    skipped: int
    replaced: int

    def summary(self) -> str:
        """Returns the totals on one line."""
        line = f"{self.documents:,} documents, {self.tokens:,} tokens, {self.characters:,} characters"
        if self.skipped or self.replaced:
            line += f" ({self.skipped:,} documents skipped, {self.replaced:,} with invalid text replaced)"
        return line


@dataclass(frozen=True)
class Preparation:
    """Result of `prepare`. `seconds` and `text_bytes` (UTF-8) cover this call; 0 if everything was already done."""

    totals: Totals
    seconds: float
    text_bytes: int

    def summary(self) -> str:
        """Returns the totals on one line, with the time of this call or a note that there was nothing to do."""
        if not self.seconds:
            return f"{self.totals.summary()}; already complete, nothing to do"
        speed = self.text_bytes / 1e6 / self.seconds
        return f"{self.totals.summary()}; {self.seconds:.1f} s, {speed:.2f} MB/s"


@dataclass
class _Progress:
    """Finished shards and the counts of their documents."""

    settings: dict[str, Any]
    shards: list[ShardRecord] = field(default_factory=list)
    documents_read: int = 0
    documents_without_tokens: int = 0
    characters: int = 0


def prepare(
    paths: Sequence[str],
    tokenizer: Tokenizer,
    output: str | Path,
    *,
    text_field: str = "text",
    errors: ErrorPolicy = "strict",
    document_boundary: DocumentBoundary = "line",
    separator: Separator = "sep",
    shard_tokens: int = DEFAULT_SHARD_TOKENS,
    workers: int | None = None,
    part: Part | None = None,
) -> Preparation:
    """Tokenizes the documents of `paths` into the folder `output`.

    text_field, errors and document_boundary: see `read_documents`.
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
    _check_arguments(output, shard_tokens, workers)
    folder = Path(output)
    files = input_files(paths)
    streams = divide(files, shard_tokens)
    if part:
        _check_siblings(folder, part)
        folder /= part.folder
        streams = part.share(streams, shard_tokens)
    settings = {
        "inputs": [file.identity for stream in streams for file in stream],
        "text_field": text_field,
        "errors": errors,
        "document_boundary": document_boundary,
        "separator": separator,
        "shard_tokens": shard_tokens,
        "vocabulary_size": tokenizer.vocabulary_size,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        **(part_settings(part, files) if part else {}),
    }
    # A complete folder may be read-only.
    if _is_finished(folder) and not (folder / LOCK_FILE).exists():
        return Preparation(_check_finished(folder, settings), 0.0, 0)
    with own_folder(folder) as lock:
        # Another process may have finished it since.
        if _is_finished(folder):
            return Preparation(_check_finished(folder, settings), 0.0, 0)
        documents = [] if part else [file.path for file in files]
        return _prepare(folder, lock, settings, streams, tokenizer, workers or _default_workers(), documents)


def _is_finished(folder: Path) -> bool:
    return (folder / MANIFEST_FILE).exists()


def _prepare(
    folder: Path,
    lock: FolderLock,
    settings: dict[str, Any],
    streams: Iterable[Sequence[InputFile]],
    tokenizer: Tokenizer,
    workers: int,
    required: Sequence[str],
) -> Preparation:
    """Prepares or resumes; at least one of the files `required`, if any, must have a document with tokens."""
    counts = CorpusCounts()
    started = time.perf_counter()
    progress = _start_or_resume(folder, settings)
    try:
        documents = (_documents(stream, settings, counts) for stream in streams)
        text_bytes = _write_shards(folder, progress, documents, tokenizer, workers)
        if required:
            check_any_document(required, counts)
            check_any_token(len(progress.shards), counts.documents)
        lock.confirm()
        totals = _finish(folder, progress, tokenizer, counts)
    except InputError:
        _remove(folder)
        raise
    except OSError as error:
        lock.confirm()
        if not progress.shards:
            _remove(folder)
        raise RunError(f"{folder}: preparation stopped: {_described(error)}; rerun it to resume") from error
    return Preparation(totals, time.perf_counter() - started, text_bytes)


def check_any_token(num_shards: int, num_documents: int) -> None:
    """Raises InputError if `num_documents` documents yielded no shard."""
    if not num_shards:
        raise InputError(f"none of the {num_documents} documents has a token; expected text")


def _check_arguments(output: str | Path, shard_tokens: int, workers: int | None) -> None:
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
    return Totals(**manifest["totals"])


def _documents(stream: Sequence[InputFile], settings: dict[str, Any], counts: CorpusCounts) -> Iterator[str]:
    return read_files(
        [file.path for file in stream],
        text_field=settings["text_field"],
        errors=settings["errors"],
        document_boundary=settings["document_boundary"],
        counts=counts,
    )


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
        raise RunError(f"{folder}: cannot be written: {_described(error)}") from error
    return progress


def _write_shards(
    folder: Path,
    progress: _Progress,
    streams: Iterable[Iterator[str]],
    tokenizer: Tokenizer,
    workers: int,
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
            with closing(encode_documents(documents, tokenizer, separator, workers=workers)) as blocks:
                yield from shard_parts(blocks, shard_tokens)

    writer: ShardWriter | None = None
    with byte_counter("prepare") as bar, closing(parts()) as encoded:
        try:
            for part, closes_shard in encoded:
                writer = writer or ShardWriter(folder, len(progress.shards))
                writer.write(part)
                _advance(progress, part)
                if closes_shard and writer.num_tokens:
                    progress.shards.append(writer.close())
                    _save_progress(folder, progress)
                    writer = None
                bar.set_postfix(documents=progress.documents_read, refresh=False)
        finally:
            if writer:
                writer.discard()
    return text_bytes


def _advance(progress: _Progress, part: EncodedBlock) -> None:
    kept = part.document_lengths > 0
    progress.documents_read += len(kept)
    progress.documents_without_tokens += len(kept) - int(kept.sum())
    progress.characters += int(part.document_characters[kept].sum())


def _finish(folder: Path, progress: _Progress, tokenizer: Tokenizer, counts: CorpusCounts) -> Totals:
    totals = Totals(
        documents=sum(shard.documents for shard in progress.shards),
        tokens=sum(shard.tokens for shard in progress.shards),
        characters=progress.characters,
        skipped=counts.skipped + progress.documents_without_tokens,
        replaced=counts.replaced,
    )
    tokenizer.save(folder / TOKENIZER_FOLDER)
    write_atomically(folder / MANIFEST_FILE, manifest_content(progress.settings, totals, progress.shards))
    (folder / PROGRESS_FILE).unlink(missing_ok=True)
    return totals


def manifest_content(settings: dict[str, Any], totals: Totals, shards: Sequence[ShardRecord]) -> bytes:
    """Returns the content of the manifest of a preparation with `settings`."""
    identity = (settings["separator"], settings["vocabulary_size"], settings["tokenizer_fingerprint"])
    return _json(
        {
            "version": FORMAT_VERSION,
            "fingerprint": content_fingerprint(*identity, shards),
            "token_dtype": token_dtype(settings["vocabulary_size"]).name,
            "separator": settings["separator"],
            "vocabulary_size": settings["vocabulary_size"],
            "tokenizer_fingerprint": settings["tokenizer_fingerprint"],
            "totals": asdict(totals),
            "settings": settings,
            "shards": [asdict(shard) for shard in shards],
        }
    )


def _check_settings(folder: Path, made_with: dict[str, Any], settings: dict[str, Any]) -> None:
    name = next((name for name, value in settings.items() if made_with.get(name) != value), None)
    if name is None:
        return
    then, now = made_with.get(name), settings[name]
    if name == "inputs" and isinstance(then, list):
        pairs = zip_longest(then, now, fillvalue="nothing")
        then, now = next(pair for pair in pairs if pair[0] != pair[1])
    raise InputError(
        f"{folder}: made with other settings: {name} was {then!r}, is {now!r}; "
        "choose another folder or remove this one"
    )


def _read_progress(file: Path) -> _Progress:
    try:
        content = json.loads(file.read_bytes())
        return _Progress(**{**content, "shards": [ShardRecord(**shard) for shard in content["shards"]]})
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file}: damaged ({error}); remove the folder and prepare it again") from error


def _save_progress(folder: Path, progress: _Progress) -> None:
    write_atomically(folder / PROGRESS_FILE, _json(asdict(progress)))


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _remove(folder: Path) -> None:
    for pattern in ("tokens-*.bin*", "documents-*.bin*", f"{PROGRESS_FILE}*"):
        for file in folder.glob(pattern):
            file.unlink(missing_ok=True)
    shutil.rmtree(folder / TOKENIZER_FOLDER, ignore_errors=True)


def _described(error: OSError) -> str:
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
