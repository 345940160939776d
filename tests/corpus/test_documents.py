"""Reading documents: every format and compression, and every kind of damage to a file."""

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
import tarfile
import warnings
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import given
from hypothesis import strategies as st

from mlm_jax.corpus.documents import CorpusCounts, expand_paths, read_documents
from mlm_jax.errors import InputError, RunError

DOCUMENTS = ["The first document.", "Zürich, 東京 and \U0001f600.", "a\tb"]
COMPRESS = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".zst": lambda data: zstandard.ZstdCompressor(write_checksum=True).compress(data),
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
}


def as_bytes(kind: str, documents: list[str]) -> bytes:
    if kind == ".txt":
        return "".join(f"{document}\n" for document in documents).encode()
    return "".join(json.dumps({"id": 1, "text": document}) + "\n" for document in documents).encode()


def read(*paths: Path | str, **options) -> list[str]:
    return list(read_documents([str(path) for path in paths], **options))


def refusal(*paths: Path | str, **options) -> str:
    with pytest.raises(InputError) as caught:
        read(*paths, **options)
    message = str(caught.value)
    assert "\n" not in message
    return message


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("kind", [".txt", ".jsonl"])
def test_reads_each_format(tmp_path, kind, compression):
    path = write(tmp_path / f"a{kind}{compression}", COMPRESS[compression](as_bytes(kind, DOCUMENTS)))
    counts = CorpusCounts()
    assert read(path, counts=counts) == DOCUMENTS
    assert counts == CorpusCounts(documents=3)


@pytest.mark.parametrize(
    "string_type",
    [
        pa.string(),
        pa.large_string(),
        pa.string_view(),
        pa.binary(),
        pa.large_binary(),
        pa.binary_view(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.dictionary(pa.int8(), pa.large_string()),
    ],
    ids=str,
)
def test_reads_parquet_over_row_groups(tmp_path, string_type):
    documents = [f"document {i % 100} é" for i in range(1000)]
    table = pa.table({"id": range(1000), "body": pa.array(documents).cast(string_type)})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=300)
    assert read(tmp_path / "a.parquet", text_field="body") == documents


@pytest.mark.parametrize("compression", COMPRESS)
def test_reads_concatenated_compressed_streams(tmp_path, compression):
    parts = [COMPRESS[compression](f"part {i}\n".encode()) for i in range(3)]
    assert read(write(tmp_path / f"a.txt{compression}", b"".join(parts))) == ["part 0", "part 1", "part 2"]


def test_zst_with_skippable_frame(tmp_path):
    skippable = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"abcd"
    data = skippable + COMPRESS[".zst"](b"text\n") + skippable
    assert read(write(tmp_path / "a.txt.zst", data)) == ["text"]


def test_line_ends_byte_order_mark_and_missing_final_newline(tmp_path):
    assert read(write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\ntwo\x0bstill two\r\n\r\nthree")) == [
        "one",
        "two\x0bstill two",
        "three",
    ]
    assert read(write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "one"}\r\n\r\n')) == ["one"]


def test_byte_order_marks_of_joined_files_are_no_text(tmp_path):
    for name, content in {
        "a.txt": "the lake\r\n",
        "a.jsonl": '{"text": "the lake"}\n',
    }.items():
        assert read(write(tmp_path / name, f"\ufeff{content}".encode() * 2)) == ["the lake"] * 2
    path = write(tmp_path / "a.csv", "\ufeffid,text\n1,the lake\n".encode() * 2)
    assert refusal(path).startswith(f"{path}:3: repeats the header")
    assert read(write(tmp_path / "b.txt", "in\ufeff the\n".encode())) == ["in\ufeff the"]


def test_blank_lines_separate_documents(tmp_path):
    path = write(tmp_path / "a.txt", b"\n\none\ntwo\n \t\nthree\n\n\n\nfour")
    assert read(path, document_boundary="blank_line") == ["one\ntwo", "three", "four"]


def test_skipped_documents_are_counted(tmp_path):
    records = [{"text": "a"}, {"text": " \n\u3000"}, {"text": ""}, {"text": None}, {"text": "b"}]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, records)).encode())
    counts = CorpusCounts()
    assert read(path, counts=counts) == ["a", "b"]
    assert counts == CorpusCounts(documents=2, skipped=3)
    pq.write_table(pa.table({"text": ["a", None, " ", "b"]}), tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", counts=counts) == ["a", "b"]
    assert counts == CorpusCounts(documents=4, skipped=5)


def test_globs_are_sorted_and_each_file_is_read_once(tmp_path):
    for name in ("b", "a", "c"):
        write(tmp_path / f"{name}.txt", name.encode())
    assert read(tmp_path / "c.txt", tmp_path / "*.txt") == ["c", "a", "b"]
    assert read(f"file://{tmp_path}/b.txt") == ["b"]


def test_wildcards_match_no_hidden_names(tmp_path):
    for name in ("a/x.txt", "a/.ipynb_checkpoints/x.txt", ".cache/x.txt", ".x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        write(tmp_path / name, name.encode())
    assert read(tmp_path / "**/*.txt") == ["a/x.txt"]
    assert read(tmp_path / "**") == ["a/x.txt"]
    assert read(tmp_path / ".cache/*.txt") == [".cache/x.txt"]
    assert read(tmp_path / ".*.txt") == [".x.txt"]
    assert read(tmp_path / "a/.i*/*") == ["a/.ipynb_checkpoints/x.txt"]
    assert "no file matches" in refusal(tmp_path / "*.txt")


def test_options_without_effect_are_refused(tmp_path):
    text, table = write(tmp_path / "a.txt", b"text\nb"), write(tmp_path / "a.csv", b"body\nb")
    assert "text_field 'body': all files are plain text" in refusal(text, text_field="body")
    boundary = refusal(table, text_field="body", document_boundary="blank_line")
    assert "document_boundary 'blank_line': no file is plain text, and csv has" in boundary
    assert read(text, table, text_field="body", document_boundary="file") == ["text\nb", "b"]


def test_different_names_of_a_local_file_are_recognized(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    for name in ("a", "b"):
        write(tmp_path / f"{name}.txt", name.encode())
    (tmp_path / "link.txt").symlink_to(tmp_path / "a.txt")
    monkeypatch.chdir(tmp_path)
    names = ["a.txt", "*.txt", "./a.txt", "folder/../a.txt", f"file://{tmp_path}/a.txt", "link.txt"]
    assert expand_paths(names) == ["a.txt", str(tmp_path / "b.txt")]
    assert read(*names) == ["a", "b"]


def test_memory_file_system_with_a_glob():
    fsspec = pytest.importorskip("fsspec")
    with fsspec.open("memory://corpus/x.txt.gz", "wb") as file:
        file.write(gzip.compress(b"remote"))
    assert read("memory://corpus/*.gz") == ["remote"]
    assert read("memory://corpus") == ["remote"]


def test_wildcards_leave_no_folder_or_broken_link_out_silently(tmp_path):
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub" / "b.txt", b"b")
    write(tmp_path / "a.txt", b"a")
    with pytest.warns(UserWarning, match=r"/\*: 1 folders match, and are left out: sub; name a folder"):
        assert read(tmp_path / "*") == ["a"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(tmp_path / "**") == read(tmp_path / "*.txt", tmp_path / "sub") == ["a", "b"]
    (tmp_path / "c.txt").symlink_to("nowhere")
    for pattern in ("*.txt", "**"):
        assert refusal(tmp_path / pattern) == (
            f"{tmp_path}/c.txt: not a regular file; expected files; remove broken links"
        )


def test_file_whose_name_looks_like_a_chain_of_urls(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("Talk", "Talk::Main.txt"):
        write(Path(name), name.encode())
    assert read("Talk::Main.txt") == ["Talk::Main.txt"]
    with pytest.warns(UserWarning, match="left out: Talk"):
        assert read(".") == ["Talk::Main.txt"]


def test_file_whose_name_looks_like_a_pattern(tmp_path):
    write(tmp_path / "a[1].txt", b"brackets")
    write(tmp_path / "a1.txt", b"other")
    assert read(tmp_path / "a[1].txt") == ["brackets"]


@pytest.mark.parametrize("kind", [".txt", ".jsonl"])
@pytest.mark.parametrize("compression", [c for c in COMPRESS if c])
def test_truncated_compressed_files_are_rejected(tmp_path, kind, compression):
    text = as_bytes(kind, [f"document {i * 7919 % 1000}" for i in range(2000)])
    whole = COMPRESS[compression](text)
    for size in {1, 2, len(whole) // 3, len(whole) - 5, len(whole) - 1}:
        path = write(tmp_path / f"a{kind}{compression}", whole[:size])
        assert str(path) in refusal(path)


def test_zst_truncated_between_blocks_is_rejected(tmp_path):
    # The decompressor has returned everything it was given; only the missing end marker shows the truncation.
    out = io.BytesIO()
    with zstandard.ZstdCompressor().stream_writer(out, closefd=False) as writer:
        writer.write(b"one whole line\n")
        writer.flush(zstandard.FLUSH_BLOCK)
        cut = out.tell()
        writer.write(b"another\n")
    assert "truncated" in refusal(write(tmp_path / "a.txt.zst", out.getvalue()[:cut]))


@pytest.mark.parametrize("compression", [c for c in COMPRESS if c])
def test_damaged_compressed_files_are_rejected(tmp_path, compression):
    damaged = bytearray(COMPRESS[compression](as_bytes(".txt", [f"document {i}" for i in range(2000)])))
    damaged[len(damaged) // 2] ^= 0xFF
    assert str(tmp_path) in refusal(write(tmp_path / f"a.txt{compression}", bytes(damaged)))


@pytest.mark.parametrize("cut", [0.0, 0.5, 0.99])
def test_damaged_parquet_is_rejected(tmp_path, cut):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": [f"document {i}" for i in range(1000)]}), path)
    data = path.read_bytes()
    assert str(path) in refusal(write(path, data[: int(len(data) * cut)]))


@pytest.mark.parametrize("compression", COMPRESS)
def test_invalid_utf8_is_reported_with_its_byte_offset(tmp_path, compression):
    text = b"good\nz\xc3\xbc bad \xff here\nmore\n"
    path = write(tmp_path / f"a.txt{compression}", COMPRESS[compression](text))
    assert f"{path}:2: invalid UTF-8 at byte {text.index(0xFF)} (0xff" in refusal(path)
    counts = CorpusCounts()
    assert read(path, errors="replace", counts=counts) == ["good", "zü bad \ufffd here", "more"]
    assert counts == CorpusCounts(documents=3, replaced=1)


@pytest.mark.parametrize("errors", ["strict", "replace"])
@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv"])
def test_what_is_no_text_is_named(tmp_path, suffix, errors):
    text = b"text\nthe city\n"
    parquet = io.BytesIO()
    pq.write_table(pa.table({"text": ["a"]}), parquet)
    for data, kind in [
        (gzip.compress(text), "gzip; name it .gz"),
        *((COMPRESS[name](text), f"name it {name}") for name in (".zst", ".xz", ".bz2")),
        (text.decode().encode("utf-16"), "UTF-16; convert it with iconv"),
        (parquet.getvalue(), "Parquet; name it .parquet"),
    ]:
        path = write(tmp_path / f"a{suffix}", data)
        assert refusal(path, errors=errors).startswith(f"{path}: expected text in UTF-8, found ")
        assert kind in refusal(path, errors=errors)


@pytest.mark.parametrize("errors", ["strict", "replace"])
@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv"])
def test_other_content_without_a_mark_is_named(tmp_path, suffix, errors):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(write(tmp_path / "in.txt", b"the city\n" * 100), "in.txt")
    for data in (
        "text\nthe city\n".encode("utf-16-le"),
        archive.getvalue(),
        b"SQLite format 3\0\x10\0" + bytes(80),
        b"PK\5\6" + bytes(18),
    ):
        path = write(tmp_path / f"a{suffix}", data)
        assert "expected text in UTF-8, found many NUL bytes" in refusal(path, errors=errors)
    for start, encoding in ((b"\xff\xfe\0\0", "utf-32-le"), (b"\0\0\xfe\xff", "utf-32-be")):
        path = write(tmp_path / f"a{suffix}", start + "text\n".encode(encoding))
        assert "found UTF-32; convert it" in refusal(path, errors=errors)
    # A few in text are left to the tokenizer.
    assert read(write(tmp_path / "b.txt", b"a\0b\0\n")) == ["a\0b\0"]


def test_lines_that_end_with_a_carriage_return_alone_are_refused(tmp_path):
    for name, data in {
        "a.txt": b"the lake\rthe river\r",
        "a.jsonl": b'{"text": "a"}\r{"text": "b"}\r',
        "a.csv": b"text,id\ra,1\r",
        "a.tsv": b"text\tid\rthe lake\t1\r",
    }.items():
        path = write(tmp_path / name, data)
        assert refusal(path).startswith(f"{path}: its lines end with CR alone; expected LF or CR LF")
    assert read(tmp_path / "a.txt", document_boundary="file") == ["the lake\rthe river"]
    assert read(write(tmp_path / "b.txt", b"a\rb\nc\r\n"), write(tmp_path / "c.txt", b"d\r")) == [
        "a\rb",
        "c",
        "d",
    ]


def test_invalid_utf8_in_jsonl_and_parquet(tmp_path):
    data = b'{"text": "a"}\n{"text": "b\xe9"}\n'
    path = write(tmp_path / "a.jsonl", data)
    assert f"{path}:2: invalid UTF-8 at byte {data.index(0xE9)}" in refusal(path)
    column = pa.array([b"fine", b"b\xe9"]).view(pa.string())
    pq.write_table(pa.table({"text": column}), tmp_path / "a.parquet")
    assert "row 1" in refusal(tmp_path / "a.parquet")
    for file in (path, tmp_path / "a.parquet"):
        counts = CorpusCounts()
        assert read(file, errors="replace", counts=counts)[1] == "b\ufffd"
        assert counts == CorpusCounts(documents=2, replaced=1)


def test_lone_surrogate_in_json_is_rejected_or_replaced(tmp_path):
    path = write(tmp_path / "a.jsonl", rb'{"text": "pair \ud83d\ude00, half \ud83d"}')
    assert f"{path}:1" in refusal(path)
    counts = CorpusCounts()
    (text,) = read(path, errors="replace", counts=counts)
    assert "pair \U0001f600, half" in text
    assert text.encode()
    assert counts.replaced == 1


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"text": "a"', "not valid JSON: Expecting ',' delimiter at column 13"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"text": ' + b"1" * 5000 + b"}", "not valid JSON"),
        (b'["a"]', "expected a JSON object with the field 'text', found an array"),
        (b'{"txt": "a", "id": 3}', "no field 'text'; it has 'txt', 'id', perhaps 'txt'"),
        (b'{"text": 3}', "field 'text' should be a string, found a number"),
        (b'{"text": false}', "field 'text' should be a string, found a boolean"),
    ],
)
def test_invalid_json_is_reported_with_file_and_line(tmp_path, line, expected):
    path = write(tmp_path / "a.jsonl", b'{"text": "fine"}\n\n' + line + b"\n")
    message = refusal(path)
    assert message.startswith(f"{path}:3: ")
    assert expected in message


def test_invalid_parquet_columns(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"txt": ["a"], "text": [3]}), path)
    assert "should hold strings, found int64" in refusal(path)
    assert "no column 'tex'; it has 'txt', 'text', perhaps 'text'" in refusal(path, text_field="tex")
    twice = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(twice, path)
    assert "more than one column 'text'" in refusal(path)


def test_a_repeated_column_is_not_suggested_for_itself(tmp_path):
    path = tmp_path / "x.csv"
    path.write_bytes(b"text,text\nThe lake,in Utah\n")
    assert refusal(path).endswith("more than one column 'text'; it has 'text', 'text'")


def test_paths_may_be_objects_but_not_one_string(tmp_path):
    path = write(tmp_path / "a.txt", b"text")
    assert list(read_documents([path])) == ["text"]
    for paths, message in (
        (str(path), "paths: found one path, '.*a.txt': must be a list of paths"),
        (path, "paths: found one path"),
        ([str(path), b"b.txt"], r"paths\[1\]: found bytes: must be a path or URL"),
    ):
        with pytest.raises(InputError, match=message):
            read_documents(paths)


def test_unreadable_paths_are_rejected_at_the_call(tmp_path):
    write(tmp_path / "a.txt", b"text")
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder / "a.pdf", b"text")
    os.mkfifo(tmp_path / "pipe")
    for path, expected in [
        (tmp_path / "pipe", "not a regular file; pipe it into --input -"),
        ("-", "standard input needs a --format"),
        ("", "'' is no input"),
        (tmp_path / "b*.txt", "no file matches"),
        (tmp_path / "b.txt", "no such file"),
        (folder, "no file here has a known suffix"),
        (write(tmp_path / "a.json", b"text"), "unknown file type"),
        (write(tmp_path / "a.parquet.gz", b"text"), "decompress it"),
        ("nonsense://a.txt", "cannot be opened"),
        # Errors of libraries that file systems raise as they are.
        (f"zip://a.txt::{tmp_path / 'a.txt'}", "cannot be opened: File is not a zip file"),
        ("data:,hello.txt", "cannot be read"),
    ]:
        with pytest.raises(InputError, match=expected) as caught:
            read_documents([str(tmp_path / "a.txt"), str(path)])
        assert str(path) in str(caught.value)
    with pytest.raises(InputError, match="no input given"):
        read_documents([])


@pytest.mark.parametrize("compression", COMPRESS)
def test_empty_files_are_skipped_and_counted(tmp_path, compression):
    empty = write(tmp_path / f"a.txt{compression}", COMPRESS[compression](b""))
    assert refusal(empty) == f"{empty}: no readable document (file is empty)"
    assert "all files are empty" in refusal(empty, write(tmp_path / "b.txt", b""))
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "c.parquet")
    (tmp_path / "d.parquet").touch()
    (tmp_path / "e.csv").touch()
    write(tmp_path / "f.txt", b"text\n\n")
    counts = CorpusCounts()
    names = ("a.txt*", "b.txt", "c.parquet", "d.parquet", "e.csv", "f.txt")
    assert read(*(tmp_path / name for name in names), counts=counts) == ["text"]
    assert counts == CorpusCounts(documents=1, skipped=1, empty_files=5)


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv", ".tsv"])
@pytest.mark.parametrize("content", [b"\xef\xbb\xbf", b"\xef\xbb\xbf\r\n", b"\n\n"])
def test_files_with_only_a_mark_or_blank_lines_are_skipped(tmp_path, suffix, content):
    write(tmp_path / f"0{suffix}", content)
    write(tmp_path / "1.txt", b"text\n")
    counts = CorpusCounts()
    assert read(tmp_path / f"0{suffix}", tmp_path / "1.txt", counts=counts) == ["text"]
    assert counts.empty_files == 1


@pytest.mark.parametrize("kind", [pa.null(), pa.string(), pa.dictionary(pa.int8(), pa.string())])
def test_a_parquet_file_of_nulls_is_skipped_and_counted(tmp_path, kind):
    pq.write_table(pa.table({"text": pa.array([None, None], kind)}), tmp_path / "0.parquet")
    pq.write_table(pa.table({"text": ["a", None]}), tmp_path / "1.parquet")
    counts = CorpusCounts()
    assert read(tmp_path / "*.parquet", counts=counts) == ["a"]
    assert counts == CorpusCounts(documents=1, skipped=3, empty_files=1)


@pytest.mark.parametrize("compression", ["", ".gz"])
def test_reads_tables(tmp_path, compression):
    rows = [
        ("1", "The first."),
        ("2", 'Said "yes", twice'),
        ("3", "two\nlines"),
        ("4", ""),
        ("5", "Zürich" * 40_000),
    ]
    buffer = io.StringIO()
    csv.writer(buffer).writerows([("id", "text"), *rows])
    compress = COMPRESS[compression]
    path = write(tmp_path / f"a.csv{compression}", compress(b"\xef\xbb\xbf" + buffer.getvalue().encode()))
    counts = CorpusCounts()
    assert read(path, counts=counts) == [text for _, text in rows if text]
    assert counts == CorpusCounts(documents=4, skipped=1)
    # GLUE's files have quotes that belong to the text.
    table = 'id\ttext\r\n1\t"Quoted" and open "\r\n\r\n2\tsecond\r\n'
    path = write(tmp_path / f"a.tsv{compression}", compress(table.encode()))
    assert read(path) == ['"Quoted" and open "', "second"]


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_blank_line_is_a_row_of_one_column(tmp_path, suffix):
    one, two = write(tmp_path / f"one{suffix}", b"text\na\n\nb\n"), tmp_path / f"two{suffix}"
    assert read(one, keep_empty=True) == ["a", "", "b"]
    separator = "," if suffix == ".csv" else "\t"
    write(two, f"text{separator}id\na{separator}1\n\nb{separator}2\n".encode())
    assert read(str(two), keep_empty=True) == ["a", "b"]
    empty = write(tmp_path / "empty.txt", b"\n  \n")
    assert read(empty, keep_empty=True) == ["", ""]


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", "id,text\n1,a\n2,b,c\n", "a.csv:3: 3 fields; expected 2, as in the header"),
        ("a.tsv", "id\ttext\n1\n", "a.tsv:2: 1 fields; expected 2"),
        ("a.csv", "id;text\n1;a\n", "a.csv: no column 'text'; it has one column, 'id;text'"),
        ("a.csv", "text,text\na,b\n", "more than one column 'text'"),
        ("a.csv", 'text\n"open\nand more\n', "a.csv:3: not valid CSV: unexpected end of data"),
        ("a.csv", 'text\n"a" b\n', "a.csv:2: not valid CSV"),
    ],
)
def test_invalid_tables_are_reported(tmp_path, name, content, expected):
    assert expected in refusal(write(tmp_path / name, content.encode()))


@pytest.mark.parametrize(("suffix", "mark"), [(".csv", ","), (".tsv", "\t")])
def test_a_repeated_header_is_no_document(tmp_path, suffix, mark):
    lines = [mark.join(row) for row in (("id", "text"), ("1", "a"), ("id", "text"), ("2", "b"))]
    path = write(tmp_path / f"a{suffix}", "\n".join(lines).encode())
    assert refusal(path).startswith(f"{path}:3: repeats the header; expected a row of data")
    # Of one column, it may be a text.
    assert read(write(tmp_path / f"b{suffix}", b"text\na\ntext\n")) == ["a", "text"]


def test_fields_of_tsv_that_look_quoted_are_reported(tmp_path):
    quoted = write(tmp_path / "a.tsv", b'text\n"the ""lake"" is in utah"\n"a ""b"""\n')
    with pytest.warns(UserWarning, match=r"a\.tsv:2: column 'text' looks quoted") as caught:
        assert read(quoted) == ['"the ""lake"" is in utah"', '"a ""b"""']
    assert len(caught) == 1
    literal = write(tmp_path / "b.tsv", b'text\n"the lake"\n"a" and "b"\n"Hello," he said.\n""\n')
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(read(literal)) == 4


def test_invalid_utf8_in_a_table(tmp_path):
    path = write(tmp_path / "a.csv", b'text\n"a\nb\xff"\nc\n')
    assert f"{path}:3: invalid UTF-8 at byte 9" in refusal(path)
    counts = CorpusCounts()
    assert read(path, errors="replace", counts=counts) == ["a\nb\ufffd", "c"]
    assert counts == CorpusCounts(documents=2, replaced=1)


def test_the_format_of_other_suffixes(tmp_path):
    data = as_bytes(".jsonl", DOCUMENTS)
    assert read(write(tmp_path / "a.ndjson", data)) == DOCUMENTS
    for name in ("a.json", "part-00000", "a.txt"):
        assert read(write(tmp_path / name, data), format="jsonl") == DOCUMENTS
    assert read(write(tmp_path / "a.json.gz", gzip.compress(data)), format="jsonl") == DOCUMENTS
    assert "unknown file type" in refusal(tmp_path / "a.json.gz")
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "table")
    assert read(tmp_path / "table", format="parquet") == ["a"]


def test_a_folder_is_its_files(tmp_path):
    for name in ("b/1.txt", "a/2.txt", "a/1.txt.gz", ".hidden/3.txt", "_SUCCESS", "a/.4.txt", "a/_5.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        data = name.encode()
        write(tmp_path / name, gzip.compress(data) if name.endswith(".gz") else data)
    assert read(tmp_path) == ["a/1.txt.gz", "a/2.txt", "b/1.txt"]
    assert read(f"file://{tmp_path}/a/", tmp_path / "a/2.txt") == ["a/1.txt.gz", "a/2.txt"]
    write(tmp_path / "a" / "notes.md", b"notes")
    with pytest.warns(UserWarning, match=r"1 files of other types are left out: notes\.md"):
        assert len(read(tmp_path)) == 3
    assert "notes" in read(tmp_path, format="txt")


def test_links_of_a_folder_are_followed_to_files_only(tmp_path):
    folder = tmp_path / "folder"
    for name in ("folder", "elsewhere"):
        (tmp_path / name).mkdir()
    write(tmp_path / "elsewhere" / "b.txt", b"b")
    write(folder / "a.txt", b"a")
    (folder / "b.txt").symlink_to(tmp_path / "elsewhere" / "b.txt")
    (folder / "missing.md").symlink_to(tmp_path / "missing.md")
    with pytest.warns(UserWarning, match=r"1 files of other types are left out: missing\.md"):
        assert read(folder) == ["a", "b"]
    for name, target in (("more", "elsewhere"), ("c.txt", "missing.txt")):
        link = folder / name
        link.symlink_to(tmp_path / target)
        assert refusal(folder).startswith(f"{link}: not a regular file; links to folders are not followed")
        link.unlink()


def test_standard_input(tmp_path, monkeypatch):
    class Input:
        buffer = io.BytesIO(as_bytes(".jsonl", DOCUMENTS))

    monkeypatch.setattr(sys, "stdin", Input)
    write(tmp_path / "a.txt", as_bytes(".jsonl", ["more"]))
    assert read("-", tmp_path / "a.txt", format="jsonl") == [*DOCUMENTS, "more"]
    for kind in (None, "parquet"):
        assert "standard input needs a --format" in refusal("-", format=kind)


def test_one_document_a_file(tmp_path):
    write(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\n\r\ntwo\r\n\r\n")
    write(tmp_path / "b.txt.gz", gzip.compress(b"three"))
    write(tmp_path / "c.txt", b"\n \n")
    counts = CorpusCounts()
    assert read(tmp_path, document_boundary="file", counts=counts) == ["one\n\ntwo", "three"]
    assert counts == CorpusCounts(documents=2, skipped=1, empty_files=1)


def test_dotted_fields(tmp_path):
    records = [
        {"meta": {"text": "a", "n": 1}},
        {"meta": None},
        {"meta": {"text": None}},
        {"meta": {"text": "b"}},
    ]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, records)).encode())
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "a.parquet", row_group_size=2)
    for file in (path, tmp_path / "a.parquet"):
        counts = CorpusCounts()
        assert read(file, text_field="meta.text", counts=counts) == ["a", "b"]
        assert counts == CorpusCounts(documents=2, skipped=2)
        assert "no column" in refusal(file, text_field="meta.txt") or "no field 'meta.txt'" in refusal(
            file, text_field="meta.txt"
        )
        assert "perhaps 'text'" in refusal(file, text_field="meta.txt")
        assert "should " in refusal(file, text_field="meta")
    pq.write_table(pa.Table.from_pylist([{"meta": None}]), tmp_path / "b.parquet")
    assert read(tmp_path / "*.parquet", text_field="meta.text") == ["a", "b"]
    # A name that contains a dot is that of the field itself.
    literal = [{"meta.text": "a", "meta": {"text": "b"}}]
    write(path, json.dumps(literal[0]).encode())
    assert read(path, text_field="meta.text") == ["a"]


def test_no_readable_document(tmp_path):
    path = write(tmp_path / "a.txt", b" \n\n\t\n")
    assert refusal(path) == f"{path}: no readable document (3 were empty or whitespace only)"
    assert "no readable document" in refusal(path, document_boundary="blank_line")


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_jsonl_round_trip(tmp_path_factory, texts):
    path = write(
        tmp_path_factory.mktemp("corpus") / "a.jsonl.zst", COMPRESS[".zst"](as_bytes(".jsonl", ["x", *texts]))
    )
    assert read(path) == ["x", *(text for text in texts if text and not text.isspace())]


def test_highly_compressed_zst_is_read_in_bounded_memory(tmp_path):
    path = tmp_path / "a.txt.zst"
    line = b"word " * 200_000 + b"\n"
    with zstandard.ZstdCompressor().stream_writer(path.open("wb")) as writer:
        for _ in range(1000):
            writer.write(line)
    script = (
        "import re, sys\n"
        "from mlm_jax.corpus.documents import read_documents\n"
        f"assert sum(map(len, read_documents([{str(path)!r}]))) == 1000 * ({len(line)} - 1)\n"
        "assert 'jax' not in sys.modules\n"
        # Not ru_maxrss, which a child process inherits from its parent.
        "print(int(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1]) // 1024)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 400


def test_errors_of_a_remote_file_system_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with fsspec.open("memory://broken/a.txt", "wb") as file:
        file.write(b"hello\n")

    def fail(*_: object) -> None:
        raise LookupError("connection\nreset")

    monkeypatch.setattr(MemoryFileSystem, "open", fail)
    with pytest.raises(
        RunError, match=r"memory://broken/a\.txt: cannot be read: LookupError: connection reset"
    ):
        list(read_documents(["memory://broken/a.txt"]))
