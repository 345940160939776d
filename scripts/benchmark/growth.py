"""`benchmark.py growth`: cost of a token with more microbatches and documents, of a compilation with more layers."""

import itertools
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from mlm_jax.data.prepare import prepare
from mlm_jax.text.corpus import read_documents
from mlm_jax.text.tokenizer import Tokenizer
from scripts.benchmark.contest import Contestant, compete
from scripts.benchmark.corpus import text_files
from scripts.benchmark.data import pipeline_contestant
from scripts.benchmark.step import SIZES
from scripts.benchmark.step_work import as_settings, write_batches
from scripts.benchmark.table import Cell, Table

_MICROBATCHES = (1, 8)
_DOCUMENTS = (1_000, 1_000_000)
_LAYERS = (12, 48)
_VOCABULARY_SIZE = 2048


def measure_growth(*, rounds: int) -> list[Table]:
    """A row for each of them: the work, less and more of it, and what more costs, times what less does.

    Raises:
        RunError: a contestant failed.
    """
    return [
        Table(
            "Growth",
            ("work", "unit", "less", "units/s", "more", "units/s with more", "cost of a unit with more, ×"),
            [_accumulation(rounds), *_corpus(rounds), _compilation(rounds)],
        )
    ]


def _accumulation(rounds: int) -> tuple[Cell, ...]:
    """As many rows a microbatch, and as many rows a round."""
    work, most = SIZES["tiny"], max(_MICROBATCHES)
    works = [
        replace(work, batch_size=work.batch_size * count, accumulation_steps=count, steps=most // count)
        for count in _MICROBATCHES
    ]
    with tempfile.TemporaryDirectory() as folder:
        batches = Path(folder) / "batches.npz"
        write_batches(works[-1], batches)
        contestants = [
            Contestant(f"microbatches: {count}", "scripts.benchmark.ours.step", as_settings(one, batches))
            for count, one in zip(_MICROBATCHES, works, strict=True)
        ]
        return _row("train step, BERT-tiny", "rows", contestants, rounds)


def _corpus(rounds: int) -> Iterator[tuple[Cell, ...]]:
    """Documents of the demo, again and again: prepared once each, and then read."""
    paths = text_files(())
    tokenizer = Tokenizer.train(read_documents(paths), _VOCABULARY_SIZE)
    with tempfile.TemporaryDirectory(prefix="mlm_jax_benchmark_") as name:
        contestants, rates = [], []
        for documents in _DOCUMENTS:
            text, folder = Path(name) / f"{documents}.txt", Path(name) / str(documents)
            endless = itertools.chain.from_iterable(read_documents(paths) for _ in itertools.count())
            with text.open("w", encoding="utf-8") as file:
                file.writelines(f"{document}\n" for document in itertools.islice(endless, documents))
            started = time.perf_counter()
            prepare([str(text)], tokenizer, folder)
            rates.append(documents / (time.perf_counter() - started))
            contestants.append(
                pipeline_contestant(
                    f"{documents:,} documents", folder, sequence_length=128, batch_size=32, packing="packed"
                )
            )
        less, more = (contestant.name for contestant in contestants)
        yield "preparation, once each", "documents", less, rates[0], more, rates[1], rates[0] / rates[1]
        yield _row("input pipeline", "rows", contestants, rounds)


def _compilation(rounds: int) -> tuple[Cell, ...]:
    contestants = [
        Contestant(
            f"{layers} layers",
            "scripts.benchmark.ours.compilation",
            {"work": asdict(SIZES["base"]), "layers": layers},
        )
        for layers in _LAYERS
    ]
    return _row("compilation of a train step, as wide as BERT-base", "compilations", contestants, rounds)


def _row(work: str, unit: str, contestants: list[Contestant], rounds: int) -> tuple[Cell, ...]:
    less, more = compete(contestants, rounds=rounds)
    return work, unit, less.name, less.rate, more.name, more.rate, less.ratio_to(more)
