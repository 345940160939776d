"""Reading metrics.jsonl and eval.jsonl back."""

from pathlib import Path

import pytest

from mlm_jax.errors import InputError
from mlm_jax.run.records import read_records

LINE = b'{"step": 3, "loss": 2.5, "mfu": null}'


def test_torn_lines_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(
        LINE + b"\n" + LINE[:12] + LINE + b"\n" + LINE + b"\n" + LINE[:9]
    )
    assert read_records(tmp_path / "metrics.jsonl", ["loss"]) == [{"step": 3, "loss": 2.5, "mfu": None}] * 2
    assert read_records(tmp_path / "eval.jsonl") == []


@pytest.mark.parametrize(
    "line",
    [
        b"[1, 2]",
        b"null",
        b"{}",
        b'{"step": "3", "loss": 1.0}',
        b'{"step": true, "loss": 1.0}',
        b'{"step": 3}',
        b'{"step": 3, "loss": "low"}',
        b'{"step": 3, "loss": [1]}',
        b'{"step": 3, "loss": 1' + b"0" * 100 + b"}",
        b'{"step": 3, "loss": NaN}',
        b'{"step": 3, "loss": 1.0, "mfu": -Infinity}',
    ],
)
def test_lines_that_are_no_records_are_named(line: bytes, tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(LINE + b"\n" + line + b"\n")
    with pytest.raises(
        InputError, match=r"metrics\.jsonl:2: not a record of a run: .* numbers step, loss; remove"
    ):
        read_records(file, ["loss"])


@pytest.mark.parametrize("value", [b"null", b"NaN", b"1e200"])
def test_rates_can_be_multiplied(value: bytes, tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(
        LINE[:-1] + b', "step_seconds": 0.5}\n' + LINE[:-1] + b', "step_seconds": ' + value + b"}\n"
    )
    with pytest.raises(InputError, match=r"metrics\.jsonl:2: .* numbers step, loss, step_seconds; remove"):
        read_records(file, ["loss"], rates=["step_seconds"])
