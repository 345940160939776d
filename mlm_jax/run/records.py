"""Appends records to the files of a run, and reads them back. Does not import jax."""

import errno
import math
import os
import warnings
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from typing import Any

from mlm_jax.errors import InputError
from mlm_jax.files.json_files import parse_json

METRICS_FILE = "metrics.jsonl"
EVALUATIONS_FILE = "eval.jsonl"

# Products and sums of rates are finite.
_LARGEST_RATE = 1e100


def read_records(
    path: Path, numbers: Sequence[str] = (), *, rates: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Returns the complete lines of metrics.jsonl or eval.jsonl, oldest first; none if the file is missing.

    A line that is not JSON is left out: the last one was being written when a process was killed. Of others, a warning
    has the numbers.

    Args:
        path: the file.
        numbers: fields that every line has; null stands for a number that is not finite.
        rates: fields that every line has, and that are never null.

    Raises:
        InputError: a line is JSON but not an object of finite numbers and nulls with a step and these fields.
    """
    if not path.exists():
        return []
    records, unreadable = [], []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        try:
            record = parse_json(line, path)
        except InputError:
            if line.strip() and number < len(lines):
                unreadable.append(number)
            continue
        if not _is_record(record, numbers, rates):
            raise InputError(
                f"{path}:{number}: not a record of a run: must be a JSON object with the numbers "
                f"{', '.join(['step', *numbers, *rates])}; remove the line"
            )
        records.append(record)
    if unreadable:
        some = ", ".join(map(str, unreadable[:5])) + (", …" if len(unreadable) > 5 else "")
        warnings.warn(
            f"{path}: damaged: {len(unreadable)} lines are no JSON and are left out: {some}", stacklevel=2
        )
    return records


def _is_record(record: Any, numbers: Sequence[str], rates: Sequence[str]) -> bool:
    return (
        isinstance(record, dict)
        and {*numbers, *rates} <= set(record)
        and type(record.get("step")) is int
        and all(value is None or _is_number(value) for value in record.values())
        and all(record[name] is not None and abs(record[name]) < _LARGEST_RATE for name in rates)
    )


def _is_number(value: Any) -> bool:
    return (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) < 2**63)


def append_whole(file: FileIO, data: bytes) -> None:
    """Appends all of `data` with one system call, or nothing.

    Raises:
        OSError: the data could not be written; `filename` is set.
    """
    end = os.fstat(file.fileno()).st_size
    try:
        written = file.write(data)
    except OSError as error:
        error.filename = file.name  # missing from the error of a failed write
        raise
    if written != len(data):
        file.truncate(end)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)
