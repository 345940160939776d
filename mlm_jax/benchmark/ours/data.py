"""A contestant: the input pipeline of a run, from shards to rows on the host."""

from itertools import islice
from typing import Any

from mlm_jax.benchmark.contest import Round, serve
from mlm_jax.config import DataConfig
from mlm_jax.data.batches import TrainingBatches
from mlm_jax.data.sources import open_sources


def prepare(settings: dict[str, Any]) -> tuple[Round, dict[str, Any]]:
    """A round reads `batches` batches; units are rows."""
    config = DataConfig(path=settings["folder"], sequence_length=settings["sequence_length"])
    rows = open_sources(config).train
    batches = TrainingBatches(rows, settings["batch_size"], seed=0)
    stream = batches.from_step(0, 10**9, config.prefetch_batches)

    def read() -> float:
        return sum(len(batch.token_ids) for batch in islice(stream, settings["batches"]))

    return read, {"rows": rows.num_rows}


if __name__ == "__main__":
    serve(prepare)
