"""`benchmark.py data`: rows that the input pipeline of a run reads a second, beside what a train step takes."""

import tempfile
from pathlib import Path

from mlm_jax.benchmark.contest import Contestant, compete
from mlm_jax.benchmark.corpus import prepare_for_benchmark, text_files
from mlm_jax.benchmark.step import SIZES
from mlm_jax.benchmark.step_work import as_settings, write_batches
from mlm_jax.benchmark.table import Table


def measure_data(texts: tuple[Path, ...], *, rounds: int) -> list[Table]:
    """Rows of `texts`, by default of the demo's text, and steps of BERT-tiny on as many tokens.

    Raises:
        InputError: a text cannot be read.
        RunError: a contestant failed.
    """
    work = SIZES["tiny"]
    with tempfile.TemporaryDirectory(prefix="mlm_jax_benchmark_") as name:
        folder = Path(name)
        data = prepare_for_benchmark(text_files(texts), folder / "data")
        write_batches(work, folder / "batches.npz")
        reading = {
            "folder": str(data),
            "sequence_length": work.sequence_length,
            "batch_size": work.batch_size,
            "batches": 2000,
        }
        pipeline, step = compete(
            [
                Contestant("input pipeline", "mlm_jax.benchmark.ours.data", reading),
                Contestant(
                    "step, BERT-tiny",
                    "mlm_jax.benchmark.ours.step",
                    as_settings(work, folder / "batches.npz"),
                ),
            ],
            rounds=rounds,
        )
    return [
        Table(
            f"The input pipeline, rows of {work.sequence_length} tokens, {work.batch_size} a batch, "
            f"{pipeline.about['rows']:,} rows in all",
            ("", "rows/s", "tokens/s", "× what the step takes"),
            [
                (
                    result.name,
                    result.rate,
                    result.rate * work.sequence_length,
                    None if result is step else result.ratio_to(step),
                )
                for result in (pipeline, step)
            ],
        )
    ]
