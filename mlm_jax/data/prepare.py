"""Files → tokenised shards: in parallel, in bounded memory, and from where it stopped after a kill.

`progress.json` holds the settings and the shards that are complete; it is replaced after each shard and
removed once the manifest stands. A shard has its name only when all its bytes are on the disk.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any

from tqdm import tqdm

from mlm_jax.data.corpus import (
    CorpusCounts,
    DocumentBoundary,
    ErrorPolicy,
    expand_paths,
    file_size,
    read_documents,
)
from mlm_jax.data.encode import EncodedBlock, Separator, encode_documents, token_dtype
from mlm_jax.data.files import PARTIAL_SUFFIX, write_atomically
from mlm_jax.data.shards import (
    DEFAULT_SHARD_TOKENS,
    FORMAT_VERSION,
    MANIFEST_FILE,
    PROGRESS_FILE,
    TOKENIZER_FOLDER,
    ShardRecord,
    ShardWriter,
    check_shard_files,
    content_fingerprint,
    open_shards,
    read_manifest,
    shard_parts,
)
from mlm_jax.data.tokenizer import Tokenizer
from mlm_jax.errors import InputError


@dataclass(frozen=True)
class Totals:
    """What a preparation holds.

    characters: of the documents kept. skipped: documents without text or without tokens. replaced: documents
    in which broken text was replaced.
    """

    documents: int
    tokens: int
    characters: int
    skipped: int
    replaced: int


@dataclass(frozen=True)
class Preparation:
    """The outcome of `prepare`; seconds and text_bytes (UTF-8) of this call, 0 where all was done before."""

    totals: Totals
    seconds: float
    text_bytes: int

    def summary(self) -> str:
        """Return one line: the totals, and the time this call took or that there was nothing left to do."""
        totals = self.totals
        line = f"{totals.documents:,} documents, {totals.tokens:,} tokens, {totals.characters:,} characters"
        if totals.skipped or totals.replaced:
            line += f" ({totals.skipped:,} documents skipped, {totals.replaced:,} with broken text replaced)"
        if not self.seconds:
            return f"{line}; already complete, nothing to do"
        return f"{line}; {self.seconds:.1f} s, {self.text_bytes / 1e6 / self.seconds:.2f} MB/s"


@dataclass
class _Progress:
    """The finished shards, and how far into the documents they reach."""

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
) -> Preparation:
    """Tokenise the documents of `paths` into the folder `output`.

    text_field, errors and document_boundary are those of `read_documents`. separator: what ends each
    document, [SEP] or nothing. A shard ends with the document that brings it to `shard_tokens` tokens.
    workers: threads; by default one a core and at most four, since more would wait for Python's lock.

    The files are the same, byte for byte, whatever the number of workers and however often the work was
    killed and called again. Calling it on a complete folder of the same settings does nothing.

    Raises InputError for bad input and then leaves nothing behind; for a folder that holds something else or
    was made with other settings; and where the output cannot be written, which keeps the finished shards for
    another call.
    """
    if shard_tokens < 1:
        raise InputError(f"shard_tokens {shard_tokens}: expected at least 1")
    if workers is not None and workers < 1:
        raise InputError(f"workers {workers}: expected at least 1")
    folder = Path(output)
    files = expand_paths(paths)
    settings = {
        # Without their folders, so that a corpus may move between the two halves of a preparation.
        "inputs": [{"name": Path(file).name, "bytes": file_size(file)} for file in files],
        "text_field": text_field,
        "errors": errors,
        "document_boundary": document_boundary,
        "separator": separator,
        "shard_tokens": shard_tokens,
        "vocabulary_size": tokenizer.vocabulary_size,
        "tokenizer_fingerprint": tokenizer.fingerprint,
    }
    if (folder / MANIFEST_FILE).exists():
        manifest = read_manifest(folder)
        _check_settings(folder, manifest["settings"], settings)
        open_shards(folder)
        (folder / PROGRESS_FILE).unlink(missing_ok=True)
        return Preparation(Totals(**manifest["totals"]), 0.0, 0)
    counts = CorpusCounts()
    documents = read_documents(
        files, text_field=text_field, errors=errors, document_boundary=document_boundary, counts=counts
    )
    started = time.perf_counter()
    existed = folder.exists()
    progress = _start_or_continue(folder, settings)
    try:
        text_bytes = _write_shards(folder, progress, documents, tokenizer, workers or _default_workers())
        totals = _finish(folder, progress, tokenizer, counts)
    except InputError:
        _remove(folder, keep_folder=existed)
        raise
    except OSError as error:
        if not progress.shards:
            _remove(folder, keep_folder=existed)
        raise InputError(f"{folder}: preparation stopped: {error}; run it again to continue") from error
    return Preparation(totals, time.perf_counter() - started, text_bytes)


def _default_workers() -> int:
    return min(os.cpu_count() or 1, 4)


def _start_or_continue(folder: Path, settings: dict[str, Any]) -> _Progress:
    file = folder / PROGRESS_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for partial in folder.glob(f"*{PARTIAL_SUFFIX}"):
            partial.unlink()
        if file.exists():
            progress = _read_progress(file)
            _check_settings(folder, progress.settings, settings)
            for index, record in enumerate(progress.shards):
                check_shard_files(folder, index, record, settings["vocabulary_size"])
            return progress
        if any(folder.iterdir()):
            raise InputError(f"{folder}: not empty, and not a preparation to continue; choose another folder")
        progress = _Progress(settings)
        _save_progress(folder, progress)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error}") from error
    return progress


def _write_shards(
    folder: Path, progress: _Progress, documents: Iterator[str], tokenizer: Tokenizer, workers: int
) -> int:
    """Write the shards that are missing; return the bytes of UTF-8 text they were made from."""
    text_bytes = 0

    def metered() -> Iterator[str]:
        nonlocal text_bytes
        for document in islice(documents, progress.documents_read, None):
            text_bytes += len(document) if document.isascii() else len(document.encode())
            yield document

    blocks = encode_documents(metered(), tokenizer, progress.settings["separator"], workers=workers)
    writer: ShardWriter | None = None
    # disable=None: only where stderr is a terminal.
    with tqdm(desc="prepare", unit="B", unit_scale=True, disable=None) as bar:
        try:
            for part, closes_shard in shard_parts(blocks, progress.settings["shard_tokens"]):
                writer = writer or ShardWriter(folder, len(progress.shards))
                writer.write(part)
                _advance(progress, part)
                if closes_shard and writer.num_tokens:
                    progress.shards.append(writer.close())
                    _save_progress(folder, progress)
                    writer = None
                bar.set_postfix(documents=progress.documents_read, refresh=False)
                bar.update(text_bytes - bar.n)
        finally:
            blocks.close()
            if writer:
                writer.discard()
    return text_bytes


def _advance(progress: _Progress, part: EncodedBlock) -> None:
    kept = part.document_lengths > 0
    progress.documents_read += len(kept)
    progress.documents_without_tokens += len(kept) - int(kept.sum())
    progress.characters += int(part.document_characters[kept].sum())


def _finish(folder: Path, progress: _Progress, tokenizer: Tokenizer, counts: CorpusCounts) -> Totals:
    if not progress.shards:
        raise InputError(f"none of the {counts.documents} documents holds a token; expected text")
    totals = Totals(
        documents=sum(shard.documents for shard in progress.shards),
        tokens=sum(shard.tokens for shard in progress.shards),
        characters=progress.characters,
        skipped=counts.skipped + progress.documents_without_tokens,
        replaced=counts.replaced,
    )
    settings = progress.settings
    identity = (settings["separator"], settings["vocabulary_size"], settings["tokenizer_fingerprint"])
    manifest = {
        "version": FORMAT_VERSION,
        "fingerprint": content_fingerprint(*identity, progress.shards),
        "token_dtype": token_dtype(settings["vocabulary_size"]).name,
        "separator": settings["separator"],
        "vocabulary_size": settings["vocabulary_size"],
        "tokenizer_fingerprint": settings["tokenizer_fingerprint"],
        "totals": asdict(totals),
        "settings": settings,
        "shards": [asdict(shard) for shard in progress.shards],
    }
    tokenizer.save(folder / TOKENIZER_FOLDER)
    write_atomically(folder / MANIFEST_FILE, _json(manifest))
    (folder / PROGRESS_FILE).unlink()
    return totals


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
        raise InputError(f"{file}: damaged ({error}); remove the folder and prepare again") from error


def _save_progress(folder: Path, progress: _Progress) -> None:
    write_atomically(folder / PROGRESS_FILE, _json(asdict(progress)))


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()


def _remove(folder: Path, *, keep_folder: bool) -> None:
    for pattern in ("tokens-*.bin*", "documents-*.bin*", f"{PROGRESS_FILE}*"):
        for file in folder.glob(pattern):
            file.unlink()
    shutil.rmtree(folder / TOKENIZER_FOLDER, ignore_errors=True)
    if not keep_folder:
        folder.rmdir()
