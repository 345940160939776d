"""Files of a run's records: how lines are appended and read back. No jax."""

import errno
import json
import os
from io import FileIO
from pathlib import Path
from typing import Any

METRICS_FILE = "metrics.jsonl"
EVALUATIONS_FILE = "eval.jsonl"


def read_records(path: Path) -> list[dict[str, Any]]:
    """Returns the whole lines of metrics.jsonl or eval.jsonl, oldest first; none if the file is missing."""
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
    """Appends `data` by one system call, or nothing.

    Raises:
        OSError: it could not be written, with the name of the file.
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
