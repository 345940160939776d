"""JSON files that are damaged or hostile."""

import math
import time
from pathlib import Path

import pytest

from mlm_jax.errors import InputError
from mlm_jax.files.json_files import json_text, parse_json, read_json_object


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"a": "\xff"}', "not valid JSON: invalid UTF-8 at byte 7"),
        (b"[" * 100_000, "nested more than 100 levels deep"),
        (b'{"a":' * 100_000, "nested more than 100 levels deep"),
        (b"[" * 500 + b"]" * 500, "nested more than 100 levels deep"),
        (b"[1, 2]", "must contain a JSON object"),
        (b"null", "must contain a JSON object"),
        (rb'{"a": ["\ud83d"]}', "not valid JSON: an unpaired surrogate"),
        (rb'{"\uDE00\ud83d": 1}', "not valid JSON: an unpaired surrogate"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "not valid JSON: Exceeds the limit"),
    ],
)
def test_anything_but_an_object_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "file.json"
    file.write_bytes(content)
    started = time.perf_counter()
    with pytest.raises(InputError, match=message) as refused:
        read_json_object(file)
    assert str(refused.value).startswith(f"{file}: ")
    assert time.perf_counter() - started < 1


def test_a_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "file.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json_object(tmp_path / "file.json") == {"a": 1}


def test_a_missing_file_is_an_empty_object(tmp_path: Path) -> None:
    assert read_json_object(tmp_path / "none.json") == {}
    assert read_json_object(tmp_path) == {}


def test_values_of_all_kinds(tmp_path: Path) -> None:
    assert parse_json("[1, [2.5, null], {}]", "here") == [1, [2.5, None], {}]
    assert parse_json(r'"\ud83d\ude00"', "here") == "\N{GRINNING FACE}"
    deep = "[" * 100 + "]" * 100
    assert str(parse_json(deep, "here")).count("[") == 100


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InputError, match=r"large\.json: 1099512 MB of JSON: must be at most 268 MB"):
        read_json_object(tmp_path / "large.json")


def test_numbers_that_json_lacks_are_null() -> None:
    values = {"a": [math.nan, (1.5, -math.inf)], "b": {"c": math.inf, "d": None, "e": "東"}}
    assert (
        json_text(values, ensure_ascii=False)
        == '{"a": [null, [1.5, null]], "b": {"c": null, "d": null, "e": "東"}}'
    )
