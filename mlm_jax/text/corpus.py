"""Reads documents from text files.

A document is a non-empty string. Files are streamed, one line or one record batch at a time, so memory does not grow
with the corpus; a single document must fit in memory.
"""

import difflib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Literal, cast

import fsspec
from fsspec.core import has_magic

from mlm_jax.errors import InputError, one_line
from mlm_jax.text.compression import COMPRESSION_SUFFIXES, decompressed_lines, raise_if_damaged
from mlm_jax.text.file_systems import file_system, is_local

ErrorPolicy = Literal["strict", "replace"]
DocumentBoundary = Literal["line", "blank_line"]

TEXT_SUFFIXES = (".txt", ".jsonl", ".parquet")

_PARQUET_BATCH_ROWS = 256
_BYTE_ORDER_MARK = "\ufeff"


@dataclass
class CorpusCounts:
    """Numbers of documents read so far, updated while the documents are consumed.

    documents: yielded to the caller. skipped: empty, null or whitespace only. replaced: documents in which
    invalid UTF-8 or a lone surrogate was replaced by U+FFFD (only with `errors="replace"`).
    """

    documents: int = 0
    skipped: int = 0
    replaced: int = 0


def read_documents(
    paths: Sequence[str],
    *,
    text_field: str = "text",
    errors: ErrorPolicy = "strict",
    document_boundary: DocumentBoundary = "line",
    keep_empty: bool = False,
    counts: CorpusCounts | None = None,
) -> Iterator[str]:
    """Streams the documents of `paths`, in the order of the paths and of the text in each.

    paths: local paths, glob patterns (sorted) and fsspec URLs of `.txt`, `.jsonl` or `.parquet` files; the
        first two may be compressed as `.gz`, `.zst`, `.xz` or `.bz2`. A file that matches several paths is read
        once.
    text_field: JSON field or Parquet column that holds the text.
    errors: "strict" stops at invalid UTF-8; "replace" substitutes U+FFFD and counts the document.
    document_boundary: in `.txt` files, a document is a line ("line") or a paragraph between blank lines.
    keep_empty: yield an empty string for a document that is empty, null or whitespace only, so that the documents of
        `.txt` and `.jsonl` files correspond to their lines, and those of `.parquet` files to their rows.
    counts: updated while the documents are consumed.

    Raises InputError on the call for paths that cannot be read. During iteration, raises it for damaged content, with
    the file and the line, row or byte offset (in the decompressed text), and if there is no document.
    """
    files = expand_paths(paths)
    counts = counts or CorpusCounts()
    documents = read_files(
        files,
        text_field=text_field,
        errors=errors,
        document_boundary=document_boundary,
        keep_empty=keep_empty,
        counts=counts,
    )
    return _requiring_any(files, documents, counts)


def expand_paths(paths: Sequence[str]) -> list[str]:
    """Returns the files that match `paths` (files, globs, fsspec URLs), each once, with globs sorted.

    Relative and absolute paths, `file://` URLs and symbolic links to the same local file count as one file; the
    first name is kept. Remote files are the same if their URLs are equal.

    Raises InputError for a path that matches nothing, a folder, an empty file or an unknown suffix.
    """
    if not paths:
        raise InputError("no input given; expected at least one .txt, .jsonl or .parquet file")
    names: dict[str, str] = {}
    for path in paths:
        for file in _expand_path(path):
            names.setdefault(_identity(file), file)
    files = list(names.values())
    for file in files:
        _split_suffixes(file)
        if file_size(file) == 0:
            raise InputError(f"{file}: file is empty")
    return files


def file_size(path: str) -> int | None:
    """Returns the size of `path` in bytes as stored, or None if its file system does not report one."""
    storage, location = file_system(path)
    return cast("int | None", storage.info(location).get("size"))


def _expand_path(path: str) -> list[str]:
    storage, location = file_system(path)
    try:
        if storage.isfile(location):
            return [path]
        if storage.isdir(location):
            raise InputError(
                f"{path}: is a folder; expected files or a pattern such as {path.rstrip('/')}/*.jsonl"
            )
        matches = sorted(storage.glob(location)) if has_magic(location) else []
        files = [match for match in matches if storage.isfile(match)]
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    if not files:
        raise InputError(f"{path}: no such file, and no file matches it as a pattern")
    return [file if is_local(storage) else storage.unstrip_protocol(file) for file in files]


def _identity(file: str) -> str:
    storage, location = file_system(file)
    return os.path.realpath(location) if is_local(storage) else file


def _split_suffixes(path: str) -> tuple[str, str]:
    """Returns (text suffix, compression suffix or "")."""
    lowered = path.lower()
    compression = next((suffix for suffix in COMPRESSION_SUFFIXES if lowered.endswith(suffix)), "")
    stem = lowered.removesuffix(compression)
    kind = next((suffix for suffix in TEXT_SUFFIXES if stem.endswith(suffix)), None)
    if kind is None:
        raise InputError(
            f"{path}: unknown file type; expected {', '.join(TEXT_SUFFIXES)}, "
            f"the first two optionally followed by {', '.join(COMPRESSION_SUFFIXES)}"
        )
    if kind == ".parquet" and compression:
        raise InputError(
            f"{path}: Parquet files are compressed internally; decompress it to {path[: -len(compression)]}"
        )
    return kind, compression


def read_files(
    files: Sequence[str],
    *,
    text_field: str,
    errors: ErrorPolicy,
    document_boundary: DocumentBoundary,
    counts: CorpusCounts,
    keep_empty: bool = False,
) -> Iterator[str]:
    """Same as `read_documents` for files returned by `expand_paths`, except that they may have no document."""
    for file in files:
        kind, compression = _split_suffixes(file)
        with fsspec.open(file, "rb") as raw:
            if kind == ".parquet":
                texts = _parquet_texts(file, raw, text_field, errors)
            else:
                lines = _placed_lines(file, decompressed_lines(file, raw, compression), errors)
                if kind == ".jsonl":
                    texts = _jsonl_texts(lines, text_field, errors)
                elif document_boundary == "line":
                    texts = _line_texts(lines)
                else:
                    texts = _blank_line_texts(lines)
            for text, replaced in texts:
                if not text or text.isspace():
                    counts.skipped += 1
                    if keep_empty:
                        yield ""
                    continue
                counts.documents += 1
                counts.replaced += replaced
                yield text


def _requiring_any(files: Sequence[str], documents: Iterator[str], counts: CorpusCounts) -> Iterator[str]:
    yield from documents
    check_any_document(files, counts)


def check_any_document(files: Sequence[str], counts: CorpusCounts) -> None:
    """Raises InputError if `counts`, for all of `files`, has no documents."""
    if counts.documents == 0:
        names = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
        raise InputError(f"{names}: no readable document ({counts.skipped} were empty or whitespace only)")


# A text, and True if invalid characters in it were replaced.
_Texts = Iterator[tuple[str, bool]]
# The same, preceded by its location for error messages.
_PlacedTexts = Iterator[tuple[str, str, bool]]


def _placed_lines(file: str, lines: Iterable[bytes], errors: ErrorPolicy) -> _PlacedTexts:
    offset = 0
    for number, line in enumerate(lines, start=1):
        where = f"{file}:{number}"
        text, replaced = _decode(line, errors, where, offset)
        yield where, (text.removeprefix(_BYTE_ORDER_MARK) if number == 1 else text), replaced
        offset += len(line)


def _line_texts(lines: _PlacedTexts) -> _Texts:
    for _, text, replaced in lines:
        yield text.rstrip("\r\n"), replaced


def _blank_line_texts(lines: _PlacedTexts) -> _Texts:
    paragraph: list[str] = []
    any_replaced = False
    for text, replaced in _line_texts(lines):
        if text and not text.isspace():
            paragraph.append(text)
            any_replaced |= replaced
        elif paragraph:
            yield "\n".join(paragraph), any_replaced
            paragraph, any_replaced = [], False
    if paragraph:
        yield "\n".join(paragraph), any_replaced


def _jsonl_texts(lines: _PlacedTexts, text_field: str, errors: ErrorPolicy) -> _Texts:
    for where, source, replaced in lines:
        if source.isspace():
            yield "", replaced
            continue
        try:
            record = json.loads(source.rstrip("\r\n"))
        except json.JSONDecodeError as error:
            raise InputError(f"{where}: not valid JSON: {error.msg} at column {error.colno}") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{where}: not valid JSON: {error}") from error
        if not isinstance(record, dict):
            raise InputError(
                f"{where}: expected a JSON object with the field {text_field!r}, found {_kind(record)}"
            )
        if text_field not in record:
            raise InputError(f"{where}: no field {text_field!r}; {_name_choices(text_field, list(record))}")
        text = "" if record[text_field] is None else record[text_field]
        if not isinstance(text, str):
            raise InputError(f"{where}: field {text_field!r} should be a string, found {_kind(text)}")
        text, surrogate = _without_surrogates(text, errors, f"{where}: field {text_field!r}")
        yield text, replaced or surrogate


def _parquet_texts(file: str, raw: BinaryIO, text_field: str, errors: ErrorPolicy) -> _Texts:
    # Imported here because importing pyarrow takes longer than importing the rest of this room.
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        # Without pre-buffering, the pages of a row group are read when they are needed, not all at once.
        table = pq.ParquetFile(raw, pre_buffer=False, buffer_size=1 << 20)
        schema = table.schema_arrow
        if text_field not in schema.names:
            raise InputError(f"{file}: no column {text_field!r}; {_name_choices(text_field, schema.names)}")
        kind = schema.field(text_field).type
        value_kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if not any(is_kind(value_kind) for is_kind in (pa.types.is_string, pa.types.is_large_string)):
            raise InputError(f"{file}: column {text_field!r} should hold strings, found {kind}")
        row = 0
        for batch in table.iter_batches(batch_size=_PARQUET_BATCH_ROWS, columns=[text_field]):
            column = batch.column(0)
            # As bytes, so that _decode handles invalid UTF-8 as in the other formats.
            for value in column.cast(value_kind).cast(pa.large_binary()).to_pylist():
                yield _decode(value or b"", errors, f"{file}: row {row}: column {text_field!r}", 0)
                row += 1
    except pa.ArrowException as error:
        raise InputError(f"{file}: damaged or not Parquet: {one_line(error)}") from error
    except OSError as error:
        raise_if_damaged(file, error)
        raise


def _decode(data: bytes, errors: ErrorPolicy, where: str, start: int) -> tuple[str, bool]:
    try:
        return data.decode("utf-8"), False
    except UnicodeDecodeError as error:
        if errors == "strict":
            what = f"invalid UTF-8 at byte {start + error.start} (0x{data[error.start]:02x}, {error.reason})"
            raise InputError(f"{where}: {what}; errors=replace substitutes U+FFFD and continues") from error
        return data.decode("utf-8", "replace"), True


def _without_surrogates(text: str, errors: ErrorPolicy, where: str) -> tuple[str, bool]:
    r"""Rejects or replaces lone surrogates, which JSON can express (`"\ud800"`) and Unicode text cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        if errors == "strict":
            what = f"lone surrogate U+{ord(text[error.start]):04X} at character {error.start}"
            raise InputError(f"{where}: {what}; errors=replace substitutes U+FFFD and continues") from error
        return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace"), True
    return text, False


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")


def _name_choices(wanted: str, names: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(wanted, names, n=1)
    hint = f", perhaps {nearest[0]!r}" if nearest else ""
    return f"it has {', '.join(map(repr, names)) or 'none'}{hint}"
