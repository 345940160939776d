"""Reads documents from text files.

A document is a non-empty string. Files are streamed, one line or one record batch at a time, so memory does not grow
with the corpus; a single document must fit in memory.
"""

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

from fsspec.core import has_magic

from mlm_jax.corpus.compression import COMPRESSION_SUFFIXES
from mlm_jax.corpus.document_formats import (
    FORMAT_SUFFIXES,
    DocumentBoundary,
    ErrorPolicy,
    Format,
    ReadOptions,
    texts_of,
)
from mlm_jax.corpus.file_systems import file_system, is_local, path_names
from mlm_jax.errors import InputError, RunError, one_line

STANDARD_INPUT = "-"
_DEFAULTS = ReadOptions()


@dataclass
class CorpusCounts:
    """Numbers of documents read so far, updated while the documents are consumed.

    documents: yielded to the caller. skipped: empty, null or whitespace only. replaced: documents in which
    invalid UTF-8 or a lone surrogate was replaced by U+FFFD (only with `errors="replace"`). empty_files: files
    without a document.
    """

    documents: int = 0
    skipped: int = 0
    replaced: int = 0
    empty_files: int = 0


def read_documents(
    paths: Sequence[str | os.PathLike[str]],
    *,
    text_field: str = "text",
    errors: ErrorPolicy = "strict",
    document_boundary: DocumentBoundary = "line",
    format: Format | None = None,
    keep_empty: bool = False,
    counts: CorpusCounts | None = None,
) -> Iterator[str]:
    """Streams the documents of `paths`, in the order of the paths and of the text in each.

    paths: local paths, glob patterns (sorted), folders (their files, sorted) and fsspec URLs of text, JSON lines, CSV,
        TSV or Parquet files; all but the last may be compressed as `.gz`, `.zst`, `.xz` or `.bz2`. "-" is standard
        input. A file that matches several paths is read once. Files without a document are skipped and counted.
    text_field: JSON field, or column, that holds the text. "meta.text" is the field `text` of the object `meta`.
    errors: "strict" stops at invalid UTF-8; "replace" substitutes U+FFFD and counts the document.
    document_boundary: in text files, a document is a line ("line"), a paragraph between blank lines ("blank_line") or
        the whole file ("file").
    format: format of all files; by default, each file's suffix tells. Required for standard input.
    keep_empty: yield an empty string for a document that is empty, null or whitespace only, so that the documents of
        text and JSON lines files correspond to their lines, and those of other files to their rows.
    counts: updated while the documents are consumed.

    Raises InputError on the call for paths that cannot be read. During iteration, raises it for damaged content, with
    the file and the line, row or byte offset (in the decompressed text), and if there is no document, unless empty ones
    are kept.
    """
    options = ReadOptions(text_field, errors, document_boundary, format)
    files = expand_paths(path_names(paths), options)
    counts = counts or CorpusCounts()
    documents = read_files(files, options, counts, keep_empty=keep_empty)
    return documents if keep_empty else _requiring_any(files, documents, counts)


def expand_paths(paths: Sequence[str], options: ReadOptions = _DEFAULTS) -> list[str]:
    """Returns the files that match `paths` (files, folders, globs, fsspec URLs), each once, sorted within each path.

    Relative and absolute paths, `file://` URLs and symbolic links to the same local file count as one file; the
    first name is kept. Remote files are the same if their URLs are equal. Hidden files of folders are left out, and so
    are those of other types, with a warning.

    Raises InputError for a path that matches nothing, an unknown suffix without a `format`, or an option that none of
    the files has a use for.
    """
    if not paths:
        raise InputError("no input given; expected at least one file, folder or -")
    names: dict[str, str] = {}
    for path in paths:
        for file in _expand_path(path, options.format):
            names.setdefault(_identity(file), file)
    files = list(names.values())
    kinds = {_split_suffixes(file, options.format)[0] for file in files}
    if options.text_field != _DEFAULTS.text_field and kinds == {"txt"}:
        raise InputError(
            f"text_field {options.text_field!r}: all files are plain text, which has no fields; leave it out, "
            "or give a --format"
        )
    if options.document_boundary != _DEFAULTS.document_boundary and "txt" not in kinds:
        raise InputError(
            f"document_boundary {options.document_boundary!r}: no file is plain text, and {', '.join(sorted(kinds))} "
            "has a document a record; leave it out, or give a --format"
        )
    return files


def is_input(file: Path, paths: Sequence[str], options: ReadOptions = _DEFAULTS) -> bool:
    """Returns True if a local file exists and matches `paths`. Raises InputError as `expand_paths` does."""
    return file.exists() and os.path.realpath(file) in map(_identity, expand_paths(paths, options))


def file_size(path: str) -> int | None:
    """Returns the size of `path` in bytes as stored, or None if its file system does not report one."""
    if path == STANDARD_INPUT:
        return None
    storage, location = file_system(path)
    return cast("int | None", storage.info(location).get("size"))


def _expand_path(path: str, format: Format | None) -> list[str]:
    if path == STANDARD_INPUT:
        return [path]
    if not path:
        raise InputError("'' is no input; expected a file, folder or -")
    storage, location = file_system(path)
    try:
        if storage.isfile(location):
            return [path]
        if storage.isdir(location):
            files = _files_in(path, storage, location, format)
        else:
            files = _matches(path, storage, location) if has_magic(location) else []
            if not files and storage.exists(location):
                raise InputError(f"{path}: not a regular file; pipe it into --input - with a --format")
    except InputError:
        raise
    except Exception as error:
        if isinstance(error, OSError) or not is_local(storage):
            raise InputError(f"{path}: cannot be read: {one_line(error)}") from error
        raise
    if not files:
        raise InputError(f"{path}: no such file, and no file matches it as a pattern")
    return [file if is_local(storage) else storage.unstrip_protocol(file) for file in files]


def _matches(path: str, storage: Any, pattern: str) -> list[str]:
    """Returns the files that match a pattern. Warns of folders, whose files it does not match."""
    matches = [match for match in sorted(storage.glob(pattern)) if not _is_hidden(match, pattern)]
    files = [match for match in matches if storage.isfile(match)]
    others = sorted(set(matches).difference(files))
    folders = [match for match in others if storage.isdir(match)]
    if broken := [match for match in others if match not in folders]:
        raise InputError(f"{broken[0]}: not a regular file; expected files; remove broken links")
    # A pattern such as ** also matches the folders of its files.
    left_out = [name for name in folders if not any(file.startswith(f"{name}/") for file in files)]
    if left_out:
        shown = _some([PurePosixPath(name).name for name in left_out])
        warnings.warn(
            f"{path}: {len(left_out)} folders match, and are left out: {shown}; name a folder to read its files",
            stacklevel=2,
        )
    return files


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def _is_hidden(file: str, pattern: str) -> bool:
    """Returns True if wildcards match a name that begins with a dot, which they do not in a shell."""
    parts = PurePosixPath(pattern).parts
    first = next(index for index, part in enumerate(parts) if has_magic(part))
    wanted = any(part.startswith(".") for part in parts[first:])
    return not wanted and any(part.startswith(".") for part in PurePosixPath(file).parts[first:])


def _files_in(path: str, storage: Any, location: str, format: Format | None) -> list[str]:
    """Returns the files of a folder and its subfolders that are not hidden, and have a known suffix or a `format`."""

    def is_visible(file: str) -> bool:
        parts = PurePosixPath(file.removeprefix(location.rstrip("/"))).parts
        return not any(part.startswith((".", "_")) for part in parts)

    files = [file for file in sorted(storage.find(location)) if is_visible(file)]
    for file in files if is_local(storage) else ():
        if not os.path.isfile(file) and (os.path.isdir(file) or format or _suffix_format(file)):
            raise InputError(
                f"{file}: not a regular file; links to folders are not followed, so pass their targets to --input, and "
                "remove broken links"
            )
    known = [file for file in files if format or _suffix_format(file)]
    if not known:
        raise InputError(f"{path}: no file here has a known suffix ({_known_suffixes()}); give a --format")
    others = [PurePosixPath(file).name for file in files if not (format or _suffix_format(file))]
    if others:
        warnings.warn(
            f"{path}: {len(others)} files of other types are left out: {_some(others)}", stacklevel=2
        )
    return known


def _identity(file: str) -> str:
    if file == STANDARD_INPUT:
        return file
    storage, location = file_system(file)
    return os.path.realpath(location) if is_local(storage) else file


def _known_suffixes() -> str:
    return ", ".join(FORMAT_SUFFIXES)


def _compression_of(path: str) -> str:
    return next((suffix for suffix in COMPRESSION_SUFFIXES if path.lower().endswith(suffix)), "")


def _suffix_format(path: str) -> Format | None:
    stem = path.lower().removesuffix(_compression_of(path))
    return next((kind for suffix, kind in FORMAT_SUFFIXES.items() if stem.endswith(suffix)), None)


def _split_suffixes(path: str, format: Format | None) -> tuple[Format, str]:
    """Returns (format, compression suffix or "")."""
    compression = _compression_of(path)
    kind = format or _suffix_format(path)
    if path == STANDARD_INPUT and kind in (None, "parquet"):
        raise InputError("-: standard input needs a --format: txt, jsonl, csv or tsv")
    if kind is None:
        raise InputError(
            f"{path}: unknown file type; expected {_known_suffixes()}, all but the last optionally followed by "
            f"{', '.join(COMPRESSION_SUFFIXES)}, or a --format"
        )
    if kind == "parquet" and compression:
        raise InputError(
            f"{path}: Parquet files are compressed internally; decompress it to {path[: -len(compression)]}"
        )
    return kind, compression


def read_files(
    files: Sequence[str], options: ReadOptions, counts: CorpusCounts, *, keep_empty: bool = False
) -> Iterator[str]:
    """Same as `read_documents` for files returned by `expand_paths`, except that they may have no document."""
    for file in files:
        kind, compression = _split_suffixes(file, options.format)
        before = counts.documents
        # An empty file is not valid Parquet, nor a complete compressed file.
        if file_size(file) != 0:
            with _one_line(file), _open(file) as raw:
                for text, replaced in texts_of(file, raw, kind, compression, options):
                    if not text or text.isspace():
                        counts.skipped += 1
                        if keep_empty:
                            yield ""
                        continue
                    counts.documents += 1
                    counts.replaced += replaced
                    yield text
        counts.empty_files += counts.documents == before


@contextlib.contextmanager
def _one_line(file: str) -> Iterator[None]:
    """Turns the errors of remote file systems, which are of any kind, into a RunError that names the file."""
    try:
        yield
    except (InputError, OSError):
        raise
    except Exception as error:
        if file == STANDARD_INPUT or is_local(file_system(file)[0]):
            raise
        raise RunError(f"{file}: cannot be read: {type(error).__name__}: {one_line(error)}") from error


def _open(file: str) -> Any:
    if file == STANDARD_INPUT:
        return contextlib.nullcontext(sys.stdin.buffer)
    storage, location = file_system(file)
    return storage.open(location, "rb")


def _requiring_any(files: Sequence[str], documents: Iterator[str], counts: CorpusCounts) -> Iterator[str]:
    yield from documents
    check_any_document(files, counts)


def check_any_document(files: Sequence[str], counts: CorpusCounts) -> None:
    """Raises InputError if `counts`, for all of `files`, has no documents."""
    if counts.documents == 0:
        names = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
        empty = "file is empty" if len(files) == 1 else "all files are empty"
        why = f"{counts.skipped} were empty or whitespace only" if counts.skipped else empty
        raise InputError(f"{names}: no readable document ({why})")
