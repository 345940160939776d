"""Files and lists of strings → documents.

A document is one non-empty string. Files are read as streams, one line or one record batch at a time, so
memory does not grow with a corpus; a single document has to fit in memory.
"""

import bz2
import difflib
import gzip
import io
import json
import lzma
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, cast

import fsspec
import zstandard
from fsspec.core import has_magic

from mlm_jax.errors import InputError
from mlm_jax.text.file_systems import file_system, is_local

ErrorPolicy = Literal["strict", "replace"]
DocumentBoundary = Literal["line", "blank_line"]

TEXT_SUFFIXES = (".txt", ".jsonl", ".parquet")
COMPRESSION_SUFFIXES = (".gz", ".zst", ".xz", ".bz2")

_READ_BYTES = 1 << 16
# zstandard hands back all that a piece decompresses to, at most some 32,000 times as much: 130 MB.
_ZSTD_PIECE_BYTES = 1 << 12
_PARQUET_BATCH_ROWS = 256
_BYTE_ORDER_MARK = "\ufeff"


@dataclass
class CorpusCounts:
    """What a reader has met so far; it grows while the documents are consumed.

    documents: given to the caller. skipped: whitespace-only, empty or null. replaced: documents in which
    broken UTF-8 or a lone surrogate was replaced by U+FFFD (only with `errors="replace"`).
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
    counts: CorpusCounts | None = None,
) -> Iterator[str]:
    """Stream the documents of `paths`, in the order of the paths and of the text inside each.

    paths: `.txt`, `.jsonl` or `.parquet`; the first two also with `.gz`, `.zst`, `.xz` or `.bz2` behind;
        local paths, glob patterns (sorted) and fsspec URLs. A file that several of them name is read once.
    text_field: the field of a JSON object, or the Parquet column, that holds the text.
    errors: "strict" stops at broken UTF-8; "replace" puts U+FFFD in its place and counts the document.
    document_boundary: in `.txt`, a document is a line ("line") or what stands between blank lines.
    counts: filled while the documents are consumed.

    Raises InputError at the call for paths that cannot be read at all, and during iteration, naming the file
    and the line, row or byte offset (in the decompressed text), for damaged content or when no document is
    found.
    """
    files = expand_paths(paths)
    counts = counts or CorpusCounts()
    documents = read_files(
        files, text_field=text_field, errors=errors, document_boundary=document_boundary, counts=counts
    )
    return _refusing_none(files, documents, counts)


def expand_paths(paths: Sequence[str]) -> list[str]:
    """Return the files that `paths` (files, globs, fsspec URLs) stand for, each once, globs sorted.

    A local file is the same under a relative and an absolute path, a `file://` URL or a symbolic link; it goes
    by the name that comes first. Remote files are the same where their URLs are.

    Raises InputError for a path that matches nothing, a folder, an empty file, or a suffix that is not known.
    """
    if not paths:
        raise InputError("no input given; name at least one .txt, .jsonl or .parquet file")
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
    """Return the size of `path` in bytes as stored, or None where its file system does not tell."""
    storage, location = file_system(path)
    return cast("int | None", storage.info(location).get("size"))


def _expand_path(path: str) -> list[str]:
    storage, location = file_system(path)
    try:
        if storage.isfile(location):
            return [path]
        if storage.isdir(location):
            raise InputError(
                f"{path}: is a folder; name files or a pattern such as {path.rstrip('/')}/*.jsonl"
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
    """Return (text suffix, compression suffix or "")."""
    lowered = path.lower()
    compression = next((suffix for suffix in COMPRESSION_SUFFIXES if lowered.endswith(suffix)), "")
    stem = lowered.removesuffix(compression)
    kind = next((suffix for suffix in TEXT_SUFFIXES if stem.endswith(suffix)), None)
    if kind is None:
        raise InputError(
            f"{path}: unknown kind of file; expected {', '.join(TEXT_SUFFIXES)}, "
            f"the first two optionally followed by {', '.join(COMPRESSION_SUFFIXES)}"
        )
    if kind == ".parquet" and compression:
        raise InputError(
            f"{path}: Parquet compresses inside the file; decompress it to {path[: -len(compression)]}"
        )
    return kind, compression


def read_files(
    files: Sequence[str],
    *,
    text_field: str,
    errors: ErrorPolicy,
    document_boundary: DocumentBoundary,
    counts: CorpusCounts,
) -> Iterator[str]:
    """`read_documents` of files that `expand_paths` returned, which may hold no document."""
    for file in files:
        kind, compression = _split_suffixes(file)
        with fsspec.open(file, "rb") as raw:
            if kind == ".parquet":
                texts = _parquet_texts(file, raw, text_field, errors)
            else:
                lines = _placed_lines(file, _lines(file, raw, compression), errors)
                if kind == ".jsonl":
                    texts = _jsonl_texts(lines, text_field, errors)
                elif document_boundary == "line":
                    texts = _line_texts(lines)
                else:
                    texts = _blank_line_texts(lines)
            for text, replaced in texts:
                if not text or text.isspace():
                    counts.skipped += 1
                    continue
                counts.documents += 1
                counts.replaced += replaced
                yield text


def _refusing_none(files: Sequence[str], documents: Iterator[str], counts: CorpusCounts) -> Iterator[str]:
    yield from documents
    check_any_document(files, counts)


def check_any_document(files: Sequence[str], counts: CorpusCounts) -> None:
    """Raise InputError where `counts`, of all of `files`, holds no document."""
    if counts.documents == 0:
        names = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
        raise InputError(f"{names}: no readable document ({counts.skipped} were empty or whitespace only)")


# A text with whether something in it was replaced.
_Texts = Iterator[tuple[str, bool]]
# The same with the place it stands at, for messages.
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
    # Imported here because pyarrow takes longer to import than everything else in this package together.
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        # Without pre-buffering the pages of a row group are read as they are needed, not all at once.
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
            # As bytes, so that broken UTF-8 is met in _decode like everywhere else.
            for value in column.cast(value_kind).cast(pa.large_binary()).to_pylist():
                yield _decode(value or b"", errors, f"{file}: row {row}: column {text_field!r}", 0)
                row += 1
    except pa.ArrowException as error:
        raise InputError(f"{file}: damaged or not Parquet: {_one_line(error)}") from error
    except OSError as error:
        _refuse_damage(file, error)
        raise


def _decode(data: bytes, errors: ErrorPolicy, where: str, start: int) -> tuple[str, bool]:
    try:
        return data.decode("utf-8"), False
    except UnicodeDecodeError as error:
        if errors == "strict":
            what = f"broken UTF-8 at byte {start + error.start} (0x{data[error.start]:02x}, {error.reason})"
            raise InputError(f"{where}: {what}; errors=replace continues and counts") from error
        return data.decode("utf-8", "replace"), True


def _without_surrogates(text: str, errors: ErrorPolicy, where: str) -> tuple[str, bool]:
    r"""Refuse or replace lone surrogates: JSON can write them (`"\ud800"`), Unicode text has none."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        if errors == "strict":
            what = f"lone surrogate U+{ord(text[error.start]):04X} at character {error.start}"
            raise InputError(f"{where}: {what}; errors=replace continues and counts") from error
        return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace"), True
    return text, False


def _lines(file: str, raw: BinaryIO, compression: str) -> Iterator[bytes]:
    """Yield the lines of the decompressed file, ends included.

    Raises InputError where the compressed data are damaged or cut off.
    """
    empty = True
    try:
        for line in _decompressed(raw, compression):
            empty = False
            yield line
    except EOFError as error:
        raise InputError(f"{file}: cut off: the {compression} data end before their end mark") from error
    except (zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
        raise InputError(f"{file}: damaged {compression[1:]} data: {_one_line(error)}") from error
    except OSError as error:
        _refuse_damage(file, error)
        raise
    if empty:
        raise InputError(f"{file}: file is empty")


def _decompressed(raw: BinaryIO, compression: str) -> Iterable[bytes]:
    match compression:
        case ".gz":
            return gzip.GzipFile(fileobj=raw)
        case ".xz":
            return lzma.open(raw)
        case ".bz2":
            return bz2.open(raw)
        case ".zst":
            return io.BufferedReader(_ZstdFile(raw), _READ_BYTES)
        case _:
            return raw


class _ZstdFile(io.RawIOBase):
    """Decompressed bytes of a .zst file; EOFError where the last frame is cut off.

    zstandard's own stream_reader reports the end of a cut-off file as a normal end.
    """

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._frame: Any = None
        self._rest = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            chunk = self._rest or self._raw.read(_ZSTD_PIECE_BYTES)
            if not chunk:
                if self._frame is not None:
                    raise EOFError("zstd frame cut off")
                return 0
            self._frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            self._ready = memoryview(self._frame.decompress(chunk))
            self._rest = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = None
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size


def _refuse_damage(file: str, error: OSError) -> None:
    # gzip, bz2 and pyarrow report damaged content as an OSError without a number; a failing disk has one.
    if error.errno is None:
        raise InputError(f"{file}: damaged: {_one_line(error)}") from error


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "an array", str: "a string", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")


def _name_choices(wanted: str, names: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(wanted, names, n=1)
    hint = f", perhaps {nearest[0]!r}" if nearest else ""
    return f"it has {', '.join(map(repr, names)) or 'none'}{hint}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
