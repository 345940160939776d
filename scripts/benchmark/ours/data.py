"""Contestant: the input pipeline of a run, from shards to rows on the host."""

import math
from itertools import islice
from typing import Any

import numpy as np

from mlm_jax.config import DataConfig
from mlm_jax.config.batch_sizes import BatchSizes
from mlm_jax.data.batches import TrainingBatches
from mlm_jax.data.sources import open_run_data
from scripts.benchmark.contest import Round, serve


def prepare(settings: dict[str, Any]) -> tuple[Round, dict[str, Any]]:
    """Returns a round that reads `batches` batches; units are rows. Reports the number of rows and their padding."""
    config = DataConfig(
        path=settings["folder"], sequence_length=settings["sequence_length"], packing=settings["packing"]
    )
    sources = open_run_data(config)
    rows, padding_id = sources.train, sources.tokenizer.pad_token_id
    batches = TrainingBatches(rows, BatchSizes(settings["batch_size"]), seed=0)
    stream = batches.from_step(0, 10**9, config.prefetch_batches)

    def read() -> float:
        return sum(len(batch.token_ids) for batch in islice(stream, settings["batches"]))

    epoch = batches.from_step(0, math.ceil(rows.num_rows / settings["batch_size"]), config.prefetch_batches)
    padding = [np.mean(batch.token_ids == padding_id) for batch in epoch]
    return read, {"rows": rows.num_rows, "padding": float(np.mean(padding))}


if __name__ == "__main__":
    serve(prepare)
