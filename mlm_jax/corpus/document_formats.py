"""Documents of one file in each format: text, JSON lines, CSV, TSV and Parquet."""

import csv
import difflib
import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal

from mlm_jax.corpus.compression import decompressed_lines, raise_if_damaged
from mlm_jax.corpus.content_checks import check_content, check_line_ends
from mlm_jax.errors import InputError, one_line
from mlm_jax.files.git_lfs import check_no_pointer

ErrorPolicy = Literal["strict", "replace"]
DocumentBoundary = Literal["line", "blank_line", "file"]
Format = Literal["txt", "jsonl", "csv", "tsv", "parquet"]

FORMAT_SUFFIXES: dict[str, Format] = {
    ".txt": "txt",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}

_PARQUET_BATCH_ROWS = 256
_BYTE_ORDER_MARK = "\ufeff"
# A field in quotation marks, with at least one in it, doubled: no text is written so, but many programs write TSV so.
_QUOTED = re.compile('"[^"]*""(?:[^"]|"")*"')
_LARGEST_FIELD = (1 << 31) - 1

# A text, and True if invalid characters in it were replaced.
Texts = Iterator[tuple[str, bool]]
# The same, preceded by its location for error messages.
_PlacedTexts = Iterator[tuple[str, str, bool]]


@dataclass(frozen=True)
class ReadOptions:
    """Options for reading documents; see `mlm_jax.corpus.documents.read_documents`."""

    text_field: str = "text"
    errors: ErrorPolicy = "strict"
    document_boundary: DocumentBoundary = "line"
    format: Format | None = None


def texts_of(file: str, raw: BinaryIO, kind: Format, compression: str, options: ReadOptions) -> Texts:
    """Yields the texts of an opened file, which may be empty or whitespace.

    Raises:
        InputError: the content is damaged or has no such field; the message has the file and the place in it.
    """
    if kind == "parquet":
        return _parquet_texts(file, raw, options)
    whole = kind == "txt" and options.document_boundary == "file"
    lines = _placed_lines(file, decompressed_lines(file, raw, compression), options.errors, whole=whole)
    if kind == "jsonl":
        return _jsonl_texts(lines, options)
    if kind in ("csv", "tsv"):
        return _table_texts(file, lines, options.text_field, _csv_rows if kind == "csv" else _tsv_rows)
    readers = {"line": _line_texts, "blank_line": _blank_line_texts, "file": _file_texts}
    return readers[options.document_boundary](lines)


def _placed_lines(
    file: str, lines: Iterable[bytes], errors: ErrorPolicy, *, whole: bool = False
) -> _PlacedTexts:
    """Yields the decoded lines; `whole` is true if together they are one document."""
    offset = 0
    for number, line in enumerate(lines, start=1):
        where = f"{file}:{number}"
        if number == 1:
            check_no_pointer(file, line)
            check_content(file, line)
            if not whole:
                check_line_ends(file, line)
        text, replaced = _decode(line, errors, where, offset)
        # Joined files have one in the middle, too.
        yield where, text.removeprefix(_BYTE_ORDER_MARK), replaced
        offset += len(line)


def _line_texts(lines: _PlacedTexts) -> Texts:
    for _, text, replaced in lines:
        yield text.rstrip("\r\n"), replaced


def _blank_line_texts(lines: _PlacedTexts) -> Texts:
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


def _file_texts(lines: _PlacedTexts) -> Texts:
    texts = list(_line_texts(lines))
    yield "\n".join(text for text, _ in texts).rstrip("\n"), any(replaced for _, replaced in texts)


def _jsonl_texts(lines: _PlacedTexts, options: ReadOptions) -> Texts:
    text_field = options.text_field
    for where, source, replaced in lines:
        # A file that has only a byte order mark has an empty line.
        if not source.strip():
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
        text = record[text_field] if text_field in record else _nested(record, text_field, where)
        text = "" if text is None else text
        if not isinstance(text, str):
            raise InputError(f"{where}: field {text_field!r} should be a string, found {_kind(text)}")
        text, surrogate = _without_surrogates(text, options.errors, f"{where}: field {text_field!r}")
        yield text, replaced or surrogate


def _nested(record: dict[str, Any], text_field: str, where: str) -> Any:
    """Returns the value of a dotted field, such as "meta.text"; None if an object on the way is null."""
    value: Any = record
    for name in text_field.split("."):
        if value is None:
            return None
        if not isinstance(value, dict) or name not in value:
            names = list(value) if isinstance(value, dict) else list(record)
            raise InputError(f"{where}: no field {text_field!r}; {_name_choices(name, names)}")
        value = value[name]
    return value


_Rows = Iterator[tuple[str, Sequence[str], bool]]


def _csv_rows(lines: _PlacedTexts) -> _Rows:
    """Yields (location, fields, True if replaced) of each row. A quoted field may contain line ends."""
    # The limit belongs to the process; the default of 128 kB rejects long documents.
    csv.field_size_limit(_LARGEST_FIELD)
    where, any_replaced = "", False

    def source() -> Iterator[str]:
        nonlocal where, any_replaced
        for where, text, replaced in lines:  # noqa: B007
            any_replaced |= replaced
            yield text

    rows = csv.reader(source(), strict=True)
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(f"{where}: not valid CSV: {error}") from error
        yield where, row, any_replaced
        any_replaced = False


def _tsv_rows(lines: _PlacedTexts) -> _Rows:
    """Same as `_csv_rows` for fields separated by tabs, without quoting."""
    for where, text, replaced in lines:
        line = text.rstrip("\r\n")
        yield where, line.split("\t") if line else [], replaced


def _table_texts(
    file: str, lines: _PlacedTexts, text_field: str, rows_of: Callable[[_PlacedTexts], _Rows]
) -> Texts:
    rows = rows_of(lines)
    header = next((row for _, row, _ in rows if row), None)
    if header is None:
        return
    if header.count(text_field) != 1:
        count = "no" if text_field not in header else "more than one"
        raise InputError(f"{file}: {count} column {text_field!r}; {_name_choices(text_field, header)}")
    column, warned = header.index(text_field), False
    for where, row, replaced in rows:
        if not row:
            # Of one column, a row without a value is a blank line. Of several, a blank line is no row.
            if len(header) == 1:
                yield "", replaced
            continue
        if len(row) != len(header):
            raise InputError(f"{where}: {len(row)} fields; expected {len(header)}, as in the header")
        if len(header) > 1 and row == header:
            raise InputError(
                f"{where}: repeats the header; expected a row of data; give files one by one instead of joining them"
            )
        if not warned and rows_of is _tsv_rows:
            warned = warn_if_quoted(where, text_field, row[column])
        yield row[column], replaced


def warn_if_quoted(where: str, column: str, field: str) -> bool:
    """Warns about a field of TSV, which has no quoting, that looks quoted, and returns True for such a field."""
    if not _QUOTED.fullmatch(field):
        return False
    warnings.warn(
        f"{where}: column {column!r} looks quoted as in CSV; fields of TSV are read as they are, with the quotation "
        "marks; expected a file without quoting, or commas in a .csv",
        stacklevel=3,
    )
    return True


def _parquet_texts(file: str, raw: BinaryIO, options: ReadOptions) -> Texts:
    # Imported here because importing pyarrow takes longer than importing the rest of this room.
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    text_field = options.text_field
    try:
        # Without pre-buffering, the pages of a row group are read when they are needed, not all at once.
        table = pq.ParquetFile(raw, pre_buffer=False, buffer_size=1 << 20)
        names = _column_path(file, table.schema_arrow, text_field)
        row = 0
        for batch in table.iter_batches(batch_size=_PARQUET_BATCH_ROWS, columns=[".".join(names)]):
            # As bytes, so that _decode handles invalid UTF-8 as in the other formats.
            for value in _bytes_of(batch, names).to_pylist():
                yield (
                    _decode(value, options.errors, f"{file}: row {row}: column {text_field!r}", 0)
                    if value
                    else ("", False)
                )
                row += 1
    except pa.ArrowException as error:
        raise InputError(f"{file}: damaged or not Parquet: {one_line(error)}") from error
    except OSError as error:
        raise_if_damaged(file, error)
        raise


def _column_path(file: str, schema: Any, text_field: str) -> list[str]:
    """Returns the names that lead to a column: one, or several if it is a field of a struct.

    Raises InputError if there is no such column, or it does not hold text.
    """
    import pyarrow as pa  # noqa: PLC0415

    path = [text_field] if text_field in schema.names else text_field.split(".")
    kind = pa.struct(list(schema))
    for depth, name in enumerate(path):
        # Where all objects are null, their fields are not known.
        if depth and pa.types.is_null(kind):
            return path[:depth]
        names = [field.name for field in kind] if pa.types.is_struct(kind) else []
        if names.count(name) != 1:
            count = "more than one" if name in names else "no"
            raise InputError(f"{file}: {count} column {text_field!r}; {_name_choices(name, names)}")
        kind = kind.field(name).type
    types = pa.types
    value_kind = kind.value_type if types.is_dictionary(kind) else kind
    is_text = (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
    # Parquet files of some writers do not mark text as UTF-8.
    is_bytes = (types.is_binary, types.is_large_binary, types.is_binary_view)
    if not any(is_kind(value_kind) for is_kind in (*is_text, *is_bytes)):
        raise InputError(f"{file}: column {text_field!r} should hold strings, found {kind}")
    return path


def _bytes_of(batch: Any, path: list[str]) -> Any:
    """Returns a column of a batch as an Arrow array of bytes."""
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.compute as pc  # noqa: PLC0415

    column = batch.column(path[0])
    for name in path[1:]:
        column = pc.struct_field(column, name)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_null(column.type):
        return column
    return column.cast(pa.large_binary())


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
    if len(names) == 1 and wanted in re.split(r"[;\t|]", names[0]):
        return f"it has one column, {names[0]!r}: fields must be separated by commas, or by tabs in a .tsv"
    nearest = difflib.get_close_matches(wanted, names, n=1)
    hint = f", perhaps {nearest[0]!r}" if nearest and wanted not in names else ""
    return f"it has {', '.join(map(repr, names)) or 'none'}{hint}"
