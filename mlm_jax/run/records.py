"""The files of a run's records, and how they are read back. No jax; `mlm_jax.run.metrics` writes them."""

import json
from pathlib import Path
from typing import Any

METRICS_FILE = "metrics.jsonl"
EVALUATIONS_FILE = "eval.jsonl"


def read_records(path: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl or eval.jsonl, oldest first; none where the file is missing."""
    if not path.exists():
        return []
    records = []
    for line in path.read_bytes().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:  # the torn last line of a process that was killed
            continue
    return records
