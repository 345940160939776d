"""Appends records to the files of a run, and reads them back. Does not import jax."""

import errno
import json
import os
from io import FileIO
from pathlib import Path
from typing import Any

METRICS_FILE = "metrics.jsonl"
EVALUATIONS_FILE = "eval.jsonl"


def read_records(path: Path) -> list[dict[str, Any]]:
    """Returns the complete lines of metrics.jsonl or eval.jsonl, oldest first; none if the file is missing."""
    if not path.exists():
        return []
    records = []
    for line in path.read_bytes().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:  # the torn last line of a process that was killed
            continue
    return records


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
