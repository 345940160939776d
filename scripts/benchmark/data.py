"""Rows per second of the input pipeline, compared with the consumption of a train step."""

import math
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import get_args

from mlm_jax.config import Packing
from scripts.benchmark.contest import Contestant, Result, compete
from scripts.benchmark.corpus import prepare_for_benchmark, text_files
from scripts.benchmark.step import SIZES
from scripts.benchmark.step_work import as_settings, write_batches
from scripts.benchmark.table import Cell, Table


def measure_data(texts: tuple[Path, ...], *, sequence_length: int, rounds: int) -> list[Table]:
    """Measures the pipeline on `texts`, packed and unpacked, and BERT-tiny steps with as many tokens per batch.

    Raises:
        InputError: a text cannot be read.
        RunError: a contestant fails.
    """
    tokens = SIZES["tiny"].batch_size * SIZES["tiny"].sequence_length
    work = replace(
        SIZES["tiny"],
        batch_size=tokens // sequence_length,
        sequence_length=sequence_length,
        masked=math.ceil(0.15 * sequence_length),
    )
    with tempfile.TemporaryDirectory(prefix="mlm_jax_benchmark_") as name:
        folder = Path(name)
        data = prepare_for_benchmark(text_files(texts), folder / "data")
        write_batches(work, folder / "batches.npz")
        *pipelines, step = compete(
            [
                *(
                    pipeline_contestant(
                        f"input pipeline, {packing}",
                        data,
                        sequence_length=sequence_length,
                        batch_size=work.batch_size,
                        packing=packing,
                    )
                    for packing in get_args(Packing)
                ),
                Contestant(
                    "step, BERT-tiny",
                    "scripts.benchmark.ours.step",
                    as_settings(work, folder / "batches.npz"),
                ),
            ],
            rounds=rounds,
        )
    return [
        Table(
            f"The input pipeline, rows of {sequence_length} tokens, {work.batch_size} a batch",
            ("", "rows", "padding, %", "rows/s", "tokens/s", "× the step's rate"),
            [
                *(_row(result, sequence_length, result.ratio_to(step)) for result in pipelines),
                _row(step, sequence_length, None),
            ],
        )
    ]


def pipeline_contestant(
    name: str, folder: Path, *, sequence_length: int, batch_size: int, packing: Packing
) -> Contestant:
    """The input pipeline of a run on a prepared folder; reads 2,000 batches per round."""
    settings = {
        "folder": str(folder),
        "sequence_length": sequence_length,
        "packing": packing,
        "batch_size": batch_size,
        "batches": 2000,
    }
    return Contestant(name, "scripts.benchmark.ours.data", settings)


def _row(result: Result, sequence_length: int, ratio: float | None) -> tuple[Cell, ...]:
    padding = result.about.get("padding")
    return (
        result.name,
        result.about.get("rows"),
        None if padding is None else 100 * padding,
        result.rate,
        result.rate * sequence_length,
        ratio,
    )
