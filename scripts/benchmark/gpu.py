"""Training steps that fill one NVIDIA GPU, compared with transformers on the same GPU.

The contestants do not fit on the GPU together, so they run one after the other, and ratios are ratios of medians. The
most informative contestants come first, because contestants without enough time left are skipped.
"""

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax

from mlm_jax.errors import InputError, RunError
from mlm_jax.step.chips import peak_flops
from mlm_jax.step.flops import mfu
from scripts.benchmark.contest import Contestant, Result, compete
from scripts.benchmark.filling import MOST_TOKENS, estimated_rows
from scripts.benchmark.peers import hugging_face
from scripts.benchmark.step_work import MODERNBERT, StepWork, as_settings, write_batches
from scripts.benchmark.table import Cell, Table

Outcome = Result | RunError | None
"""Result or error of a contestant; None if it was skipped."""

_LARGE, _BASE = "bert_large_en_uncased", "bert_base_en_uncased"
# Models, their dropout rates, and their lengths of rows, the most informative first.
_SHAPES = (
    (_LARGE, 0.1, (128, 512)),
    (MODERNBERT, 0.0, (1024, 8192)),
    (_LARGE, 0.0, (128, 512)),
    (_BASE, 0.1, (128, 512)),
    (_BASE, 0.0, (128, 512)),
    (MODERNBERT, 0.0, (128, 512)),
)
# Number of masked tokens by length: 15 % and, at the lengths of ModernBERT, its 30 %.
_MASKED = {128: 20, 512: 77, 1024: 307, 8192: 2458}
# Each contestant has the whole GPU; jax's default of 0.75 would leave a quarter unused. jax does not accept both names
# of the setting together.
_WHOLE_CARD = {"XLA_CLIENT_MEM_FRACTION": "0.9", "XLA_PYTHON_CLIENT_MEM_FRACTION": ""}
_OURS = "mlm_jax, cuDNN attention"
_OURS_WITH_DROPOUT = f"{_OURS}, no dropout on its weights"


@dataclass(frozen=True)
class Card:
    """The GPU being measured."""

    kind: str
    """Value of `jax.Device.device_kind`."""
    memory_bytes: int
    """Memory available to jax."""


@dataclass(frozen=True)
class Entry:
    """A row of a table to measure: its table, its work, and its contestant."""

    table: str
    work: StepWork
    contestant: Contestant


def measure_gpu(*, minutes: float, rounds: int) -> list[Table]:
    """Returns a table for each model, dropout rate and row length.

    BERT-large and BERT-base have rows of 128 and 512 tokens, with and without dropout; ModernBERT-base has rows of 128
    to 8,192 tokens.

    Takes about `minutes` at most. A contestant that is skipped for lack of time has a row without results, and a
    contestant that fails has a row with the reason. transformers takes part if it is installed with a CUDA build of
    torch.

    Raises:
        InputError: jax finds no NVIDIA GPU, or only one without bfloat16.
    """
    deadline = time.monotonic() + 60 * minutes
    card = _card(deadline)
    with_peers = _torch_sees_the_card(deadline)
    # This process masks the rows and must not occupy the GPU that its children use.
    jax.config.update("jax_platforms", "cpu")
    with tempfile.TemporaryDirectory(prefix="mlm_jax_benchmark_") as folder:
        for length in {length for _, _, lengths in _SHAPES for length in lengths}:
            work = StepWork(
                _SHAPES[0][0], MOST_TOKENS // length, sequence_length=length, masked=_MASKED[length]
            )
            write_batches(work, _batches(folder, length))
        entries = gpu_entries(card, folder, with_peers=with_peers)
        outcomes = []
        contestants = [entry.contestant for entry in entries]
        for entry, outcome in zip(
            entries, one_after_another(contestants, rounds=rounds, deadline=deadline), strict=True
        ):
            outcomes.append(outcome)
            print(f"{entry.table}: {_described(entry, outcome)}", file=sys.stderr, flush=True)
    return gpu_tables(entries, outcomes, card.kind)


def _card(deadline: float) -> Card:
    question = Contestant("jax", "scripts.benchmark.ours.card", {}, _WHOLE_CARD)
    remedy = "where there is one, pip install 'mlm-jax[cuda]' lets jax use it"
    try:
        about = compete([question], rounds=0, seconds=deadline - time.monotonic())[0].about
    except RunError as error:
        raise InputError(f"gpu: needs an NVIDIA GPU that jax can use, but {error}; {remedy}") from error
    if about["obstacle"] is not None:
        raise InputError(f"gpu: {about['obstacle']}; {remedy}")
    return Card(about["kind"], about["memory_bytes"])


def _torch_sees_the_card(deadline: float) -> bool:
    """Returns True if torch can use the GPU. Prints the reason if torch is installed but cannot use it."""
    for outcome in one_after_another(hugging_face("card", {}), rounds=0, deadline=deadline):
        obstacle = outcome.about["obstacle"] if isinstance(outcome, Result) else outcome
        if obstacle is not None:
            print(f"transformers takes no part: {obstacle}", file=sys.stderr, flush=True)
        return isinstance(outcome, Result) and obstacle is None
    return False


def gpu_entries(card: Card, folder: str, *, with_peers: bool) -> list[Entry]:
    """Returns all rows in the order in which they are measured; `folder` holds the batches."""
    shapes = [
        StepWork(
            preset, 1, sequence_length=length, masked=_MASKED[length], dropout_rate=rate, dtype="bfloat16"
        )
        for preset, rate, lengths in _SHAPES
        for length in lengths
    ]
    entries = []
    for shape in shapes:
        # The kernel does not support dropout of attention weights.
        cudnn = replace(shape, attention="cudnn", attention_dropout_rate=0.0)
        entries.append(_ours(_OURS_WITH_DROPOUT if shape.dropout_rate else _OURS, cudnn, card, folder))
        if with_peers:
            entries += _theirs(shape, card, folder)
    return entries + [
        _ours("mlm_jax, XLA attention", replace(shape, attention="xla"), card, folder) for shape in shapes
    ]


def _ours(name: str, shape: StepWork, card: Card, folder: str) -> Entry:
    weights = shape.attention == "xla"
    rows = estimated_rows(shape, card.memory_bytes, predicted=0, attention_weights=weights)
    work = replace(shape, batch_size=rows)
    settings = as_settings(work, _batches(folder, work.sequence_length))
    contestant = Contestant(name, "scripts.benchmark.ours.gpu_step", settings, _WHOLE_CARD)
    return Entry(_title(work, card.kind), work, contestant)


def _theirs(shape: StepWork, card: Card, folder: str) -> list[Entry]:
    positions = shape.sequence_length
    rows = estimated_rows(shape, card.memory_bytes, predicted=positions, attention_weights=False)
    work = replace(shape, batch_size=rows)
    settings = as_settings(work, _batches(folder, positions)) | {"device": "cuda", "compile": True}
    return [Entry(_title(work, card.kind), work, peer) for peer in hugging_face("gpu_step", settings)]


def _batches(folder: str, length: int) -> Path:
    return Path(folder) / f"{length}.npz"


def _title(work: StepWork, card_kind: str) -> str:
    return (
        f"{work.preset}, rows of {work.sequence_length} tokens, {work.masked} masked, {work.dtype}, "
        f"dropout {work.dropout_rate:g}, {card_kind}"
    )


def one_after_another(
    contestants: Sequence[Contestant], *, rounds: int, deadline: float
) -> Iterator[Outcome]:
    """Runs the contestants one at a time, until `deadline` on the clock `time.monotonic`.

    A contestant is skipped if less time is left than the longest one took so far. The last one is ended at the
    deadline.
    """
    longest = 0.0
    for contestant in contestants:
        begun = time.monotonic()
        if deadline - begun < longest:
            yield None
            continue
        outcome: Outcome
        try:
            outcome = compete([contestant], rounds=rounds, seconds=deadline - begun)[0]
        except RunError as error:
            outcome = error
        longest = max(longest, time.monotonic() - begun)
        yield outcome


def gpu_tables(entries: Sequence[Entry], outcomes: Sequence[Outcome], card_kind: str) -> list[Table]:
    """Returns the tables in the order of their first rows."""
    measured = list(zip(entries, outcomes, strict=True))
    return [
        _table(title, [(entry, outcome) for entry, outcome in measured if entry.table == title], card_kind)
        for title in dict.fromkeys(entry.table for entry in entries)
    ]


def _table(title: str, measured: list[tuple[Entry, Outcome]], card_kind: str) -> Table:
    ours = measured[0][1]
    return Table(
        title,
        (
            *("library", "version", "rows per batch", "sequences/s", "tokens/s", "model TFLOP/s"),
            *("fraction of the chip's peak", "mlm_jax speedup"),
        ),
        [
            (entry.contestant.name, *_figures(entry.work, outcome, card_kind), _times(ours, outcome))
            if isinstance(outcome, Result)
            else (entry.contestant.name, _reason(entry, outcome), *[None] * 6)
            for entry, outcome in measured
        ],
    )


def _figures(work: StepWork, result: Result, card_kind: str) -> tuple[Cell, ...]:
    """Returns the cells from the version to the fraction of peak. The rows have no padding."""
    flops = work.real_flops_per_sequence
    share = mfu(
        flops_per_sequence=flops,
        sequences_per_second=result.rate,
        num_devices=1,
        peak=peak_flops(card_kind, work.dtype),
    )
    return (
        result.about["version"],
        result.about["rows"],
        result.rate,
        result.rate * work.sequence_length,
        result.rate * flops / 1e12,
        share,
    )


def _times(ours: Outcome, result: Result) -> float | None:
    return ours.rate / result.rate if isinstance(ours, Result) and result is not ours else None


def _reason(entry: Entry, outcome: RunError | None) -> str | None:
    return None if outcome is None else str(outcome).removeprefix(f"{entry.contestant.name}: ")


def _described(entry: Entry, outcome: Outcome) -> str:
    if isinstance(outcome, Result):
        return f"{outcome.name}: {outcome.rate:,.0f} sequences/s"
    return f"{entry.contestant.name}: {_reason(entry, outcome) or 'skipped, no time is left'}"
